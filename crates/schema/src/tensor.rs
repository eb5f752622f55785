//! A tensor: bytes, a shape and a type. The bytes are a slice of the buffer the request arrived in, or lie on a device.

use crate::DataType;
use bytes::Bytes;
use smallvec::SmallVec;
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// Dimensions, outermost first. Six fit without an allocation, which covers images and sequences.
pub type Shape = SmallVec<[i64; 6]>;

/// One tensor, row-major, little-endian; BYTES elements each follow a 4-byte little-endian length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub datatype: DataType,
    pub shape: Shape,
    /// Empty where `device` has them.
    pub data: Bytes,
    /// In a box: a tensor of the host, as nearly all are, pays for a pointer.
    pub device: Option<Box<OnDevice>>,
}

impl Tensor {
    /// In memory of the host, as nearly all are.
    pub fn new(datatype: DataType, shape: Shape, data: Bytes) -> Tensor {
        Tensor { datatype, shape, data, device: None }
    }
}

/// Elements in the memory of a device, by whoever owns them there; only who made it knows what that is. The last one
/// dropped gives the memory back. Calls within the process carry it; nothing that came over a socket does.
#[derive(Clone)]
pub struct OnDevice {
    pub byte_size: usize,
    pub owner: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for OnDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "OnDevice({} bytes)", self.byte_size)
    }
}

/// The same memory.
impl PartialEq for OnDevice {
    fn eq(&self, other: &OnDevice) -> bool {
        Arc::ptr_eq(&self.owner, &other.owner)
    }
}

impl Eq for OnDevice {}

/// The inputs of one request in the order of the model's specification; `None` where an optional one is absent.
pub type Inputs = SmallVec<[Option<Tensor>; 2]>;

/// The outputs of one request in the order of the model's specification.
pub type Outputs = SmallVec<[Tensor; 2]>;
