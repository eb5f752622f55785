//! Tensors that lie on a GPU, between the calls of a pipeline: Python objects own the memory, tensors of the data plane
//! carry them, and their bytes are never looked at here.
//!
//! What is passed to a call is an `engine.cuda.device_rows.Rows`: a tensor and when it may be read. What comes back is the
//! tensor that the runtime made. A model that computes on the host has its rows copied there, by the thread that runs it.

use crate::instance::failed;
use crate::passing;
use penstock_dispatch::Job;
use penstock_schema::{DataType, ModelSpec, OnDevice, Result, Tensor};
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use std::sync::Arc;

/// Of dlpack.h: kDLCUDA, kDLCUDAManaged.
const GPU: [i64; 2] = [2, 13];

/// What a call was given, if it says by DLPack that it lies on a GPU. It may be read once what the calling thread has
/// enqueued on its stream is done. `row`: the batch dimension is added.
pub fn taken(value: &Bound<'_, PyAny>, row: bool) -> PyResult<Option<Tensor>> {
    static ROWS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = value.py();
    let Ok(asked) = value.getattr(intern!(py, "__dlpack_device__")) else { return Ok(None) };
    let (kind, _): (i64, i64) = asked.call0()?.extract()?;
    if !GPU.contains(&kind) {
        return Ok(None);
    }
    let function = || Ok::<_, PyErr>(py.import("penstock.engine.device_calls")?.getattr("rows")?.unbind());
    let rows = ROWS.get_or_try_init(py, function)?.bind(py).call1((value, row))?;
    let name: String = rows.getattr(intern!(py, "datatype"))?.extract()?;
    let datatype = DataType::parse(&name)
        .ok_or_else(|| PyTypeError::new_err(format!("a tensor of {name} can't be passed to a model")))?;
    carrying(rows, datatype).map(Some)
}

/// A tensor of the data plane for an object with a shape, whose elements are on a device.
pub fn carrying(object: Bound<'_, PyAny>, datatype: DataType) -> PyResult<Tensor> {
    let shape = passing::shape_of(&object)?;
    let elements = shape.iter().map(|&size| usize::try_from(size).unwrap_or(0)).product::<usize>();
    let byte_size = elements.saturating_mul(datatype.size().unwrap_or(1));
    let device = OnDevice { byte_size, owner: Arc::new(object.unbind()) };
    Ok(Tensor { device: Some(Box::new(device)), ..Tensor::new(datatype, shape, bytes::Bytes::new()) })
}

/// The Python object that owns the memory. Error: TypeError for an owner that was not made here.
pub fn object<'a, 'py>(py: Python<'py>, there: &'a OnDevice) -> PyResult<&'a Bound<'py, PyAny>> {
    let owner = there.owner.downcast_ref::<Py<PyAny>>();
    owner.map(|owner| owner.bind(py)).ok_or_else(|| PyTypeError::new_err("memory of a device that nobody here owns"))
}

/// Whether any of these have inputs on a device.
pub fn any(jobs: &[Job]) -> bool {
    jobs.iter().any(|job| job.inputs.iter().flatten().any(|tensor| tensor.device.is_some()))
}

/// Copies what lies on a device to the host. Takes the GIL; waits for the copies without it.
pub fn fetch(spec: &ModelSpec, jobs: &mut [Job]) -> Result<()> {
    Python::attach(|py| {
        for (slot, wanted) in jobs.iter_mut().flat_map(|job| job.inputs.iter_mut().zip(&spec.inputs)) {
            let Some(tensor) = slot else { continue };
            let Some(there) = &tensor.device else { continue };
            let fetched = object(py, there)
                .and_then(|rows| rows.call_method0(intern!(py, "on_host")))
                .and_then(|array| passing::array(&wanted.name, Some(wanted), array))
                .map_err(|error| failed(py, &spec.name, &error))?;
            *tensor = Tensor { shape: std::mem::take(&mut tensor.shape), ..fetched };
        }
        Ok(())
    })
}
