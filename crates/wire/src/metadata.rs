//! What the server and its models say about themselves, as JSON bodies and as protobuf messages.

use crate::grpc::pb;
use bytes::Bytes;
use penstock_schema::{ModelSpec, TensorSpec};
use serde::Serialize;

#[derive(Serialize)]
struct Server<'a> {
    name: &'a str,
    version: &'a str,
    extensions: &'a [String],
}

#[derive(Serialize)]
struct Model<'a> {
    name: &'a str,
    versions: Vec<String>,
    platform: &'a str,
    inputs: Vec<Tensor<'a>>,
    outputs: Vec<Tensor<'a>>,
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: Vec<i64>,
}

/// Answer of `GET /v2`.
pub fn server_json(name: &str, version: &str, extensions: &[String]) -> Bytes {
    to_json(&Server { name, version, extensions })
}

/// Answer of `ServerMetadata`.
pub fn server_pb(name: &str, version: &str, extensions: &[String]) -> pb::ServerMetadataResponse {
    pb::ServerMetadataResponse { name: name.to_owned(), version: version.to_owned(), extensions: extensions.to_vec() }
}

/// Answer of `GET /v2/models/M`. Shapes start with -1 when the model batches. `versions` are those that can be asked.
pub fn model_json(spec: &ModelSpec, versions: &[u64]) -> Bytes {
    to_json(&Model {
        name: &spec.name,
        versions: versions.iter().map(u64::to_string).collect(),
        platform: &spec.platform,
        inputs: describe(spec, &spec.inputs),
        outputs: describe(spec, &spec.outputs),
    })
}

/// Answer of `ModelMetadata`.
pub fn model_pb(spec: &ModelSpec, versions: &[u64]) -> pb::ModelMetadataResponse {
    let tensors = |specs: &[TensorSpec]| {
        let tensor = |tensor: Tensor<'_>| pb::model_metadata_response::TensorMetadata {
            name: tensor.name.to_owned(),
            datatype: tensor.datatype.to_owned(),
            shape: tensor.shape,
        };
        describe(spec, specs).into_iter().map(tensor).collect()
    };
    pb::ModelMetadataResponse {
        name: spec.name.clone(),
        versions: versions.iter().map(u64::to_string).collect(),
        platform: spec.platform.clone(),
        inputs: tensors(&spec.inputs),
        outputs: tensors(&spec.outputs),
    }
}

fn describe<'a>(spec: &ModelSpec, tensors: &'a [TensorSpec]) -> Vec<Tensor<'a>> {
    let tensor = |tensor: &'a TensorSpec| Tensor {
        name: &tensor.name,
        datatype: tensor.datatype.name(),
        shape: full_shape(spec, tensor),
    };
    tensors.iter().map(tensor).collect()
}

fn full_shape(spec: &ModelSpec, tensor: &TensorSpec) -> Vec<i64> {
    let batch = (spec.max_batch_size > 0).then_some(-1);
    batch.into_iter().chain(tensor.dims.iter().copied()).collect()
}

/// Serialising structs of strings and numbers can't fail; an empty body would show if it did.
fn to_json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}
