//! What a model version accepts and returns, as the data plane needs to know it.

use crate::DataType;
use bytes::Bytes;

/// One input or output. `dims` leave the batch dimension out when the model batches; -1 means any size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub datatype: DataType,
    pub dims: Vec<i64>,
    pub optional: bool,
}

/// How one input is padded so that near shapes share a batch. `axis` counts the batch dimension.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// Index into `ModelSpec::inputs`.
    pub input: usize,
    pub axis: usize,
    /// The padded size is rounded up to a multiple of this.
    pub multiple: i64,
    /// What the added elements hold, in the tensor's own type.
    pub value: f64,
}

/// How one output is cut back: its size along `axis` belongs to the padded input size divided by `divisor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputAxis {
    /// Index into `ModelSpec::outputs`.
    pub output: usize,
    pub axis: usize,
    pub divisor: i64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Padding {
    pub inputs: Vec<Axis>,
    pub outputs: Vec<OutputAxis>,
}

/// One version of one model.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    pub name: String,
    pub version: u64,
    /// Triton's platform string, such as `onnxruntime_onnx`; reported by metadata only.
    pub platform: String,
    /// 0: the model has no batch dimension and is called once per request.
    pub max_batch_size: u32,
    pub inputs: Vec<TensorSpec>,
    pub outputs: Vec<TensorSpec>,
    pub padding: Option<Padding>,
    /// Its instances take rows that lie on a device where they are, and can leave answers there.
    pub on_device: bool,
    /// Answer of the configuration endpoint, ready to send.
    pub config_json: Bytes,
    /// The same as an encoded `inference.ModelConfig`.
    pub config_proto: Bytes,
}

impl ModelSpec {
    pub fn input(&self, name: &str) -> Option<usize> {
        self.inputs.iter().position(|input| input.name == name)
    }

    pub fn output(&self, name: &str) -> Option<usize> {
        self.outputs.iter().position(|output| output.name == name)
    }
}
