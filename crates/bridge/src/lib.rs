//! `penstock._core`: the data plane as a Python module, and the only crate that knows Python.
//!
//! Python calls in from three kinds of threads: instance threads, which stay in [`model::Model::run`] for the life of a
//! model version, control threads, which load and unload, and the event loop of pipelines ([`exchange::Exchange`]). `unsafe` code is allowed here alone; each block says why
//! it is sound.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod concurrent;
mod copying;
mod device_rows;
mod devices;
mod exceptions;
mod exchange;
mod front;
mod inputs;
mod instance;
mod large;
mod load;
mod mixed;
mod model;
mod outputs;
mod passing;
mod slab;

use pyo3::prelude::*;

#[global_allocator]
static ALLOCATOR: large::Reusing = large::Reusing::new();

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<front::Front>()?;
    module.add_class::<front::Operation>()?;
    module.add_class::<model::Model>()?;
    module.add_class::<load::Load>()?;
    module.add_function(wrap_pyfunction!(load::grpc_call, module)?)?;
    module.add_function(wrap_pyfunction!(load::grpc_descriptors, module)?)?;
    module.add_class::<exchange::Exchange>()?;
    module.add_class::<concurrent::Request>()?;
    module.add_function(wrap_pyfunction!(front::log_to_stderr, module)?)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
