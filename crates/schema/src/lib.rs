//! The nouns that every crate of the data plane shares. No logic, no I/O: what a tensor is, what a model
//! accepts, how things fail, and where the bounds are.
#![forbid(unsafe_code)]

mod datatype;
mod error;
pub mod limits;
mod model;
mod tensor;

pub use datatype::DataType;
pub use error::{Code, Error, Result};
pub use model::{Axis, ModelSpec, OutputAxis, Padding, TensorSpec};
pub use tensor::{Inputs, OnDevice, Outputs, Shape, Tensor};
