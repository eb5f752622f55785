//! Memory of GPUs that clients share, reached through `engine.shared_device_memory`: the driver is Python's to call.

use crate::instance::own_code;
use penstock_front::{Devices, HANDLE_BYTES};
use penstock_schema::{Error, Result};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// An object with `open`, `read`, `write` and `close`. Called from threads of the pool beside a shard, never from a shard.
pub struct PythonDevices(pub Py<PyAny>);

impl Devices for PythonDevices {
    fn open(&self, region: &str, handle: &[u8; HANDLE_BYTES], device: i64, byte_size: u64) -> Result<u64> {
        told(|py| {
            let arguments = (region, PyBytes::new(py, handle), device, byte_size);
            self.0.bind(py).call_method1("open", arguments)?.extract()
        })
    }

    fn read(&self, mapping: u64, offset: u64, into: &mut [u8]) -> Result<()> {
        let arguments = (mapping, offset, into.as_mut_ptr() as usize, into.len());
        told(|py| self.0.bind(py).call_method1("read", arguments).map(drop))
    }

    fn write(&self, mapping: u64, offset: u64, from: &[u8]) -> Result<()> {
        let arguments = (mapping, offset, from.as_ptr() as usize, from.len());
        told(|py| self.0.bind(py).call_method1("write", arguments).map(drop))
    }

    fn close(&self, mapping: u64) {
        let closed = told(|py| self.0.bind(py).call_method1("close", (mapping,)).map(drop));
        if let Err(error) = closed {
            tracing::warn!(%error, "memory of a GPU that a client shared could not be given back");
        }
    }
}

/// Calls into Python; its own errors keep their status, others are logged and told as internal.
fn told<T>(call: impl FnOnce(Python<'_>) -> PyResult<T>) -> Result<T> {
    Python::attach(|py| {
        call(py).map_err(|error| match own_code(py, &error) {
            Some(code) => Error::new(code, error.value(py).to_string()),
            None => {
                tracing::error!("memory of a GPU that a client shared could not be reached: {error}");
                Error::internal("memory of the GPU could not be reached")
            }
        })
    })
}
