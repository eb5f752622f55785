//! Batches of which some rows lie on a GPU, or some answers are to stay there.
//!
//! As [`crate::inputs`], in two steps: rows of the host are laid side by side without the GIL, then Python gets each input
//! as a list of pieces in the order of the rows, runs of the host's and what lies on the device, and joins them there.

use crate::device_rows::{carrying, object};
use crate::inputs::{Gathered, Gatherer, array};
use crate::outputs::{Whole, check_shape, read};
use penstock_dispatch::Job;
use penstock_schema::{ModelSpec, OnDevice, Outputs, Result, TensorSpec};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PySlice, PyTuple};

/// One input of a batch.
pub struct Mixed {
    /// All rows of the host, one after the other.
    host: Gathered,
    pieces: Vec<Piece>,
}

enum Piece {
    /// These rows of `host`.
    Host {
        first: isize,
        last: isize,
    },
    Device(Box<OnDevice>),
}

impl Mixed {
    pub fn gather(gatherer: &mut Gatherer, jobs: &[Job]) -> Result<Mixed> {
        let mut pieces = Vec::new();
        let mut tensors = Vec::new();
        let mut rows = 0;
        for job in jobs {
            let Some(tensor) = gatherer.of(job) else { continue };
            if let Some(there) = &tensor.device {
                pieces.push(Piece::Device(there.clone()));
                continue;
            }
            tensors.push(tensor);
            let (first, count) = (rows, job.rows as isize);
            rows += count;
            match pieces.last_mut() {
                Some(Piece::Host { last, .. }) => *last += count,
                _ => pieces.push(Piece::Host { first, last: first + count }),
            }
        }
        Ok(Mixed { host: gatherer.gather_tensors(&tensors)?, pieces })
    }

    fn pieces<'py>(self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyList>>> {
        let host = array(py, self.host)?;
        let single = self.pieces.len() == 1;
        let piece = |piece: &Piece| match piece {
            Piece::Device(there) => object(py, there).cloned(),
            Piece::Host { first, last } => {
                let host = host.as_ref().ok_or_else(|| PyValueError::new_err("rows of the host were not laid out"))?;
                // Without a batch dimension there are no rows to cut.
                if single { Ok(host.clone()) } else { host.get_item(PySlice::new(py, *first, *last, 1)) }
            }
        };
        if self.pieces.is_empty() {
            return Ok(None);
        }
        PyList::new(py, self.pieces.iter().map(piece).collect::<PyResult<Vec<_>>>()?).map(Some)
    }
}

/// What such a batch came to.
pub struct Answers {
    /// For those who want it on the host; none where nobody does.
    pub host: Option<Vec<Whole>>,
    /// Of the jobs that want theirs on the device, in order.
    pub device: Vec<Outputs>,
}

/// Runs `execute`: `(inputs, parts, host) -> (answers on the host or None, answers of each part)`. A part is the rows of a
/// job that leaves its answer on the device: `(first, last)`, or None without a batch dimension.
pub fn call(
    py: Python<'_>,
    spec: &ModelSpec,
    (input_names, output_names): (&[Py<PyAny>], &[Py<PyAny>]),
    inputs: Vec<Mixed>,
    jobs: &[Job],
    execute: &Py<PyAny>,
    promised: bool,
) -> PyResult<Answers> {
    let arguments = PyDict::new(py);
    for (name, input) in input_names.iter().zip(inputs) {
        if let Some(pieces) = input.pieces(py)? {
            arguments.set_item(name, pieces)?;
        }
    }
    let batched = spec.max_batch_size > 0;
    let parts = PyList::empty(py);
    let mut first = 0;
    for job in jobs {
        let last = first + job.rows;
        if job.on_device {
            parts.append(batched.then_some((first, last)))?;
        }
        first = last;
    }
    let host_wanted = jobs.iter().any(|job| !job.on_device);
    let found = execute.bind(py).call1((arguments, parts, host_wanted))?.cast_into::<PyTuple>()?;
    let (host, device) = (found.get_item(0)?, found.get_item(1)?.cast_into::<PyList>()?);
    // Whoever else held the dictionary could write to its arrays; `read` counts.
    drop(found);
    let host =
        host_wanted.then(|| read(py, spec, output_names, batched.then_some(first), host, promised)).transpose()?;
    let wanting: Vec<_> = jobs.iter().filter(|job| job.on_device).collect();
    if wanting.len() != device.len() {
        return Err(PyValueError::new_err(format!(
            "expected {} answers on the device, got {}",
            wanting.len(),
            device.len()
        )));
    }
    let of_job = |(job, tensors): (&&Job, Bound<'_, PyAny>)| {
        let tensor = |(output, name): (&TensorSpec, &Py<PyAny>)| {
            let found = carrying(tensors.get_item(name)?, output.datatype)?;
            check_shape(output, batched.then_some(job.rows), &found.shape)?;
            Ok(found)
        };
        spec.outputs.iter().zip(output_names).map(tensor).collect::<PyResult<Outputs>>()
    };
    Ok(Answers { host, device: wanting.iter().zip(device.iter()).map(of_job).collect::<PyResult<_>>()? })
}
