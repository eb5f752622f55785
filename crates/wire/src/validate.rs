//! Does a request fit a model? Called by `front` between decode and submit; after it, nothing fails for shape.

use crate::elements;
use crate::request::Quoted;
use crate::{RawOutput, RawRequest, RawTensor, ReplyPlan, Validated, WantedOutput};
use penstock_schema::{DataType, Error, Inputs, ModelSpec, Result, Tensor, TensorSpec};
use smallvec::SmallVec;

/// Checks names, types, shapes, rows and byte counts of a request and puts its inputs in the model's order.
pub fn validate(spec: &ModelSpec, raw: RawRequest<'_>) -> Result<Validated> {
    let RawRequest { id, inputs, outputs, parameters } = raw;
    let (inputs, rows) = place_inputs(spec, inputs)?;
    let plan = ReplyPlan {
        id: id.into_owned(),
        outputs: plan_outputs(spec, &outputs, parameters.binary_data_output)?,
        empty_final_response: parameters.empty_final_response,
    };
    let timeout_us = (parameters.timeout_us > 0).then_some(parameters.timeout_us);
    Ok(Validated { inputs, rows, priority: parameters.priority, timeout_us, plan })
}

/// The input that set the number of rows, to name it when another one disagrees.
struct Rows<'a> {
    count: i64,
    input: &'a str,
}

fn place_inputs(spec: &ModelSpec, sent: SmallVec<[RawTensor<'_>; 2]>) -> Result<(Inputs, u32)> {
    let mut inputs: Inputs = spec.inputs.iter().map(|_| None).collect();
    let mut rows: Option<Rows<'_>> = None;
    for tensor in sent {
        let index = spec.input(&tensor.name).ok_or_else(|| unknown("input", &tensor.name, spec, &spec.inputs))?;
        let wanted = &spec.inputs[index];
        if inputs[index].is_some() {
            return Err(Error::invalid(format!("input {}: sent twice; send each input once", Quoted(&wanted.name))));
        }
        check_tensor(spec, wanted, &tensor)?;
        if spec.max_batch_size > 0 {
            let count = tensor.shape[0];
            match &rows {
                Some(first) if first.count != count => {
                    return Err(Error::invalid(format!(
                        "input {}: expected {} rows as in input {}, got {count}; send the same number in every input",
                        Quoted(&wanted.name),
                        first.count,
                        Quoted(first.input),
                    )));
                }
                Some(_) => {}
                None => rows = Some(Rows { count, input: &wanted.name }),
            }
        }
        inputs[index] =
            Some(Tensor { datatype: tensor.datatype, shape: tensor.shape, data: tensor.data, device: tensor.device });
    }
    let absent = |(wanted, input): &(&TensorSpec, &Option<Tensor>)| !wanted.optional && input.is_none();
    if let Some((wanted, _)) = spec.inputs.iter().zip(&inputs).find(absent) {
        return Err(Error::invalid(format!(
            "input {}: expected {}, got none; model {} needs it",
            Quoted(&wanted.name),
            Described(spec, wanted),
            Quoted(&spec.name),
        )));
    }
    // In 1..=max_batch_size by check_tensor, so it fits.
    let rows = rows.map_or(1, |rows| u32::try_from(rows.count).unwrap_or(u32::MAX));
    Ok((inputs, rows))
}

/// Of an input whose bytes lie in shared memory, before they are fetched: all that can be said without them.
pub fn check_place(spec: &ModelSpec, tensor: &RawTensor<'_>, byte_size: u64) -> Result<()> {
    let index = spec.input(&tensor.name).ok_or_else(|| unknown("input", &tensor.name, spec, &spec.inputs))?;
    let wanted = &spec.inputs[index];
    check_form(spec, wanted, tensor)?;
    elements::check_length(tensor.datatype, &tensor.shape, byte_size)
        .map_err(|problem| Error::invalid(format!("input {}: {problem}", Quoted(&wanted.name))))
}

fn check_tensor(spec: &ModelSpec, wanted: &TensorSpec, tensor: &RawTensor<'_>) -> Result<()> {
    check_form(spec, wanted, tensor)?;
    if tensor.place.is_some() {
        return Err(Error::internal(format!("input {}: its shared memory was not read", Quoted(&wanted.name))));
    }
    match &tensor.device {
        Some(there) => elements::check_length(tensor.datatype, &tensor.shape, there.byte_size as u64),
        None => elements::check(tensor.datatype, &tensor.shape, &tensor.data),
    }
    .map_err(|problem| Error::invalid(format!("input {}: {problem}", Quoted(&wanted.name))))
}

/// Datatype, rank and sizes.
fn check_form(spec: &ModelSpec, wanted: &TensorSpec, tensor: &RawTensor<'_>) -> Result<()> {
    if tensor.datatype != wanted.datatype {
        return Err(Error::invalid(format!(
            "input {}: expected datatype {}, got {}",
            Quoted(&wanted.name),
            wanted.datatype,
            tensor.datatype,
        )));
    }
    let batch = usize::from(spec.max_batch_size > 0);
    if tensor.shape.len() != wanted.dims.len() + batch {
        let hint = if batch == 1 && tensor.shape.len() == wanted.dims.len() {
            "; the first dimension is the batch: send 1 for a single row"
        } else {
            ""
        };
        return Err(Error::invalid(format!(
            "input {}: expected {}, got shape {:?}{hint}",
            Quoted(&wanted.name),
            Described(spec, wanted),
            tensor.shape,
        )));
    }
    if batch == 1 && !(1..=i64::from(spec.max_batch_size)).contains(&tensor.shape[0]) {
        return Err(Error::invalid(format!(
            "input {}: expected 1 to {} rows (the model's max_batch_size), got {}; split the request",
            Quoted(&wanted.name),
            spec.max_batch_size,
            tensor.shape[0],
        )));
    }
    let fits = |(&sent, &wanted): (&i64, &i64)| if wanted < 0 { sent >= 0 } else { sent == wanted };
    if !tensor.shape[batch..].iter().zip(&wanted.dims).all(fits) {
        return Err(Error::invalid(format!(
            "input {}: expected {}, got shape {:?}",
            Quoted(&wanted.name),
            Described(spec, wanted),
            tensor.shape,
        )));
    }
    Ok(())
}

fn plan_outputs(spec: &ModelSpec, wanted: &[RawOutput<'_>], binary: bool) -> Result<SmallVec<[WantedOutput; 2]>> {
    if wanted.is_empty() {
        return (0..spec.outputs.len()).map(|index| wanted_output(spec, index, binary, None)).collect();
    }
    // Doubles are found before the list can outgrow the specification.
    let mut planned: SmallVec<[WantedOutput; 2]> = SmallVec::new();
    for output in wanted {
        let index = spec.output(&output.name).ok_or_else(|| unknown("output", &output.name, spec, &spec.outputs))?;
        if planned.iter().any(|earlier| earlier.index == index) {
            return Err(Error::invalid(format!(
                "output {}: asked for twice; ask for each output once",
                Quoted(&output.name)
            )));
        }
        planned.push(wanted_output(spec, index, output.binary.unwrap_or(binary), output.place.clone())?);
    }
    Ok(planned)
}

/// Refused here rather than when encoding, so that the model does not run for an answer that can't be written.
fn wanted_output(
    spec: &ModelSpec,
    index: usize,
    binary: bool,
    place: Option<Box<crate::Place>>,
) -> Result<WantedOutput> {
    let output = &spec.outputs[index];
    let binary = binary || place.is_some();
    if !binary && matches!(output.datatype, DataType::Fp16 | DataType::Bf16) {
        return Err(Error::invalid(format!(
            "output {}: {} can't be written as JSON; ask for it with \"binary_data\": true",
            Quoted(&output.name),
            output.datatype,
        )));
    }
    Ok(WantedOutput { index, binary, place })
}

fn unknown(kind: &str, name: &str, spec: &ModelSpec, known: &[TensorSpec]) -> Error {
    /// Enough to spot a typing error; models with hundreds of inputs must not make messages of pages.
    const LISTED: usize = 8;
    let mut names: Vec<String> = known.iter().take(LISTED).map(|tensor| Quoted(&tensor.name).to_string()).collect();
    if known.len() > LISTED {
        names.push("...".to_owned());
    }
    Error::invalid(format!(
        "{kind} {}: model {} has no such {kind}; expected one of {}",
        Quoted(name),
        Quoted(&spec.name),
        names.join(", "),
    ))
}

/// "FP32 of shape [-1, 16]", with the batch dimension clients send.
struct Described<'a>(&'a ModelSpec, &'a TensorSpec);

impl std::fmt::Display for Described<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Described(spec, tensor) = self;
        write!(formatter, "{} of shape [", tensor.datatype)?;
        let batch = (spec.max_batch_size > 0).then_some(-1);
        for (position, size) in batch.iter().chain(&tensor.dims).enumerate() {
            let separator = if position == 0 { "" } else { ", " };
            write!(formatter, "{separator}{size}")?;
        }
        formatter.write_str("]")
    }
}
