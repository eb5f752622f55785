//! Collects an answer: small pieces behind each other in one allocation, large tensors as frames of their own.

use crate::Frames;
use bytes::{Bytes, BytesMut};
use penstock_schema::{Error, ModelSpec, Outputs, Result, Shape, Tensor};

/// Up to this many bytes a tensor is copied behind its header, so that a small answer is one allocation and one write;
/// beyond it the copy costs more than another entry of a vectored write.
const COPY_BYTES: usize = 16 * 1024;

pub(crate) struct FrameWriter {
    pub head: BytesMut,
    frames: Frames,
}

impl FrameWriter {
    /// `capacity`: bytes of everything that is not a large tensor.
    pub fn with_capacity(capacity: usize) -> FrameWriter {
        FrameWriter { head: BytesMut::with_capacity(capacity), frames: Frames::new() }
    }

    /// How many bytes of `head` a tensor will take.
    pub fn copied(data: &[u8]) -> usize {
        if data.len() <= COPY_BYTES { data.len() } else { 0 }
    }

    pub fn tensor(&mut self, data: Bytes) {
        if data.len() <= COPY_BYTES {
            self.head.extend_from_slice(&data);
        } else {
            if !self.head.is_empty() {
                self.frames.push(self.head.split().freeze());
            }
            self.frames.push(data);
        }
    }

    pub fn finish(mut self) -> Frames {
        if !self.head.is_empty() {
            self.frames.push(self.head.freeze());
        }
        self.frames
    }
}

/// Moves an output out of the answer; each is wanted once at most.
pub(crate) fn take_output<'a>(spec: &'a ModelSpec, outputs: &mut Outputs, index: usize) -> Result<(&'a str, Tensor)> {
    let (Some(described), Some(tensor)) = (spec.outputs.get(index), outputs.get_mut(index)) else {
        return Err(Error::internal(format!(
            "model '{}': expected {} outputs, got {}",
            spec.name,
            spec.outputs.len(),
            outputs.len()
        )));
    };
    if tensor.device.is_some() {
        // Its bytes are not here; an empty output would pass for an answer.
        return Err(Error::internal(format!(
            "model '{}': output '{}' lies on a device, expected it in memory of the host",
            spec.name, described.name
        )));
    }
    let emptied = Tensor::new(tensor.datatype, Shape::new(), Bytes::new());
    Ok((&described.name, std::mem::replace(tensor, emptied)))
}
