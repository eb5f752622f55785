//! A tensor: bytes, a shape and a type. The bytes are a slice of the buffer the request arrived in.

use crate::DataType;
use bytes::Bytes;
use smallvec::SmallVec;

/// Dimensions, outermost first. Six fit without an allocation, which covers images and sequences.
pub type Shape = SmallVec<[i64; 6]>;

/// One tensor, row-major, little-endian; BYTES elements each follow a 4-byte little-endian length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub datatype: DataType,
    pub shape: Shape,
    pub data: Bytes,
}

/// The inputs of one request in the order of the model's specification; `None` where an optional one is absent.
pub type Inputs = SmallVec<[Option<Tensor>; 2]>;

/// The outputs of one request in the order of the model's specification.
pub type Outputs = SmallVec<[Tensor; 2]>;
