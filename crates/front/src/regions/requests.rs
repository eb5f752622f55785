//! What requests name in shared memory: inputs are read before validation, outputs written before the answer.

use super::{Kind, Region, Regions};
use crate::body::{ALIGNMENT, aside};
use crate::server::Server;
use bytes::Bytes;
use penstock_schema::{Error, ModelSpec, Outputs, Result, limits};
use penstock_wire::{Place, RawRequest, ReplyPlan, Validated, validate};
use smallvec::SmallVec;
use std::sync::Arc;

/// Copying this takes about a tenth of a millisecond, which other connections may wait.
const QUICK_BYTES: u64 = 1 << 20;

/// What may be done on the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Here {
    /// It serves sockets: copy little, and call no driver.
    Quick,
    /// Anything.
    All,
}

/// A request that fits its model.
pub struct Request {
    pub validated: Validated,
    pub destinations: Destinations,
}

/// Reads what is in shared memory and checks the whole against the model. `None`: not here, that takes too long.
pub fn complete(server: &Server, spec: &ModelSpec, mut raw: RawRequest<'_>, here: Here) -> Result<Option<Request>> {
    // Nearly every request: nothing of it is anywhere else.
    let elsewhere =
        raw.inputs.iter().any(|input| input.place.is_some()) || raw.outputs.iter().any(|output| output.place.is_some());
    if !elsewhere {
        let validated = validate::validate(spec, raw)?;
        return Ok(Some(Request { validated, destinations: Destinations::default() }));
    }
    let regions = &server.regions;
    regions.permit()?;
    if !regions.fill(spec, &mut raw, here)? {
        return Ok(None);
    }
    let validated = validate::validate(spec, raw)?;
    let destinations = regions.destinations(&validated.plan)?;
    Ok(Some(Request { validated, destinations }))
}

impl Regions {
    /// Copies inputs out of their regions. False, with nothing done: not here.
    fn fill(&self, spec: &ModelSpec, raw: &mut RawRequest<'_>, here: Here) -> Result<bool> {
        // All ranges are looked at before the first byte is copied.
        let mut sources: SmallVec<[(usize, Arc<Region>, Place); 2]> = SmallVec::new();
        let mut total = 0u64;
        for (index, input) in raw.inputs.iter().enumerate() {
            let Some(place) = &input.place else { continue };
            let region = self.find(place)?;
            total = total.saturating_add(place.byte_size);
            sources.push((index, region, (**place).clone()));
        }
        if total > limits::SHARED_MEMORY_REQUEST_BYTES {
            return Err(Error::too_large(format!(
                "inputs in shared memory: expected at most {} bytes in one request, got {total}; send fewer rows",
                limits::SHARED_MEMORY_REQUEST_BYTES
            )));
        }
        // What can't be right is refused before it is copied.
        for (index, _, place) in &sources {
            validate::check_place(spec, &raw.inputs[*index], place.byte_size)?;
        }
        let slow = total > QUICK_BYTES || sources.iter().any(|(_, region, _)| region.kind() == Kind::Device);
        if here == Here::Quick && slow {
            return Ok(false);
        }
        for (index, region, place) in sources {
            let input = &mut raw.inputs[index];
            input.data = read(&region, &place)?;
            input.place = None;
        }
        Ok(true)
    }

    fn destinations(&self, plan: &ReplyPlan) -> Result<Destinations> {
        let mut found = Destinations::default();
        for wanted in &plan.outputs {
            if let Some(place) = &wanted.place {
                found.0.push(Destination { output: wanted.index, region: self.find(place)?, place: (**place).clone() });
            }
        }
        Ok(found)
    }
}

/// A copy that starts at an aligned address, so that a model can take it over as it is.
fn read(region: &Region, place: &Place) -> Result<Bytes> {
    // Below the limit of a request, so it fits.
    let length = place.byte_size as usize;
    let mut data = Vec::with_capacity(length + ALIGNMENT);
    let pad = (data.as_ptr() as usize).wrapping_neg() % ALIGNMENT;
    data.resize(pad, 0);
    region.read(place.offset, length, &mut data)?;
    Ok(Bytes::from(data).split_off(pad))
}

/// Outputs that go into shared memory. Holds their regions, so that unregistering one ends no request.
#[derive(Default)]
pub struct Destinations(SmallVec<[Destination; 1]>);

struct Destination {
    /// Into `ModelSpec::outputs`.
    output: usize,
    region: Arc<Region>,
    place: Place,
}

impl Destinations {
    /// Copies outputs to where they were asked for. Error: 400 when one is larger than its place.
    pub async fn deliver(self, spec: &ModelSpec, outputs: Outputs) -> Result<Outputs> {
        if self.0.is_empty() {
            return Ok(outputs);
        }
        for each in &self.0 {
            let length = outputs.get(each.output).map_or(0, |tensor| tensor.data.len());
            if length as u64 > each.place.byte_size {
                let name = spec.outputs.get(each.output).map_or("", |output| output.name.as_str());
                return Err(Error::invalid(format!(
                    "output '{name}': shared_memory_byte_size should be at least {length} bytes to hold the results, got {}",
                    each.place.byte_size
                )));
            }
        }
        let length = |each: &Destination| outputs.get(each.output).map_or(0, |tensor| tensor.data.len() as u64);
        let slow = self.0.iter().map(length).sum::<u64>() > QUICK_BYTES
            || self.0.iter().any(|each| each.region.kind() == Kind::Device);
        if slow {
            return aside(move || self.write(&outputs).map(|()| outputs)).await;
        }
        self.write(&outputs)?;
        Ok(outputs)
    }

    fn write(&self, outputs: &Outputs) -> Result<()> {
        for each in &self.0 {
            if let Some(tensor) = outputs.get(each.output) {
                each.region.write(each.place.offset, &tensor.data)?;
            }
        }
        Ok(())
    }
}
