//! How answers look on the wire: JSON, binary and protobuf, small and large, and errors.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use bytes::Bytes;
use common::{answer, batched, expect_refusal, floats, output, spec, strings, tensor};
use penstock_schema::Code::Internal;
use penstock_schema::{DataType, ModelSpec, OnDevice, Outputs, Tensor};
use penstock_wire::grpc::{self, StreamPart, pb};
use penstock_wire::{Frames, Place, ReplyPlan, WantedOutput, json, metadata};
use prost::Message;
use serde_json::json;
use std::sync::Arc;

fn plan(id: &str, outputs: &[(usize, bool)]) -> ReplyPlan {
    let outputs = outputs.iter().map(|&(index, binary)| WantedOutput { index, binary, place: None }).collect();
    ReplyPlan { id: id.to_owned(), outputs, ..ReplyPlan::default() }
}

fn joined(frames: &Frames) -> Vec<u8> {
    frames.concat()
}

fn unframed(frames: &Frames) -> Vec<u8> {
    let whole = joined(frames);
    let (prefix, message) = whole.split_first_chunk().unwrap();
    let prefix = grpc::unframe(*prefix).unwrap();
    assert_eq!((prefix.compressed, prefix.length as usize), (false, message.len()));
    message.to_vec()
}

fn one(datatype: DataType, shape: &[i64], data: Vec<u8>) -> (ModelSpec, Outputs) {
    (spec(0, vec![], vec![tensor("y", datatype, &[])]), Outputs::from_vec(vec![output(datatype, shape, data)]))
}

#[test]
fn json_answers_name_model_version_and_id() {
    let encoded = json::encode(&batched(), &plan("a\"b", &[(0, false), (1, false)]), answer()).unwrap();
    assert_eq!(encoded.header_length, None);
    assert_eq!(encoded.frames.len(), 1);
    let expected = r#"{"id":"a\"b","model_name":"m","model_version":"3","outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[1.0,-2.5]},{"name":"s","datatype":"BYTES","shape":[1,1],"data":["h\"i"]}]}"#;
    assert_eq!(String::from_utf8(joined(&encoded.frames)).unwrap(), expected);
    let encoded = json::encode(&batched(), &plan("", &[]), answer()).unwrap();
    assert_eq!(joined(&encoded.frames), br#"{"model_name":"m","model_version":"3","outputs":[]}"#);
}

#[test]
fn binary_outputs_follow_the_header_in_the_order_asked() {
    let encoded = json::encode(&batched(), &plan("", &[(1, true), (0, true)]), answer()).unwrap();
    let whole = joined(&encoded.frames);
    let (header, data) = whole.split_at(encoded.header_length.unwrap());
    let header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let outputs = json!([
        {"name": "s", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 7}},
        {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
    ]);
    assert_eq!(header, json!({"model_name": "m", "model_version": "3", "outputs": outputs}));
    assert_eq!(data, [strings(&[b"h\"i"]), floats(&[1.0, -2.5])].concat());
}

/// Its data is somewhere else by then; contents over gRPC go by position, so there it has empty ones.
#[test]
fn outputs_in_shared_memory_are_described_and_not_sent() {
    let mut both = plan("", &[(0, true), (1, true)]);
    both.outputs[0].place = Some(Box::new(Place { region: "a\"b".to_owned(), offset: 64, byte_size: 1000 }));
    let encoded = json::encode(&batched(), &both, answer()).unwrap();
    let whole = joined(&encoded.frames);
    let (header, data) = whole.split_at(encoded.header_length.unwrap());
    let header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let there = json!({"shared_memory_region": "a\"b", "shared_memory_byte_size": 8, "shared_memory_offset": 64});
    let outputs = json!([
        {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": there},
        {"name": "s", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 7}},
    ]);
    assert_eq!(header, json!({"model_name": "m", "model_version": "3", "outputs": outputs}));
    assert_eq!(data, strings(&[b"h\"i"]));

    let response =
        pb::ModelInferResponse::decode(unframed(&grpc::encode(&batched(), &both, answer()).unwrap()).as_slice())
            .unwrap();
    assert_eq!(response.raw_output_contents, [Bytes::new(), strings(&[b"h\"i"]).into()]);
    let parameter = |name: &str| response.outputs[0].parameters[name].parameter_choice.clone();
    use pb::infer_parameter::ParameterChoice::{Int64Param, StringParam};
    assert_eq!(parameter("shared_memory_region"), Some(StringParam("a\"b".to_owned())));
    assert_eq!(parameter("shared_memory_byte_size"), Some(Int64Param(8)));
    assert_eq!(parameter("shared_memory_offset"), Some(Int64Param(64)));
    assert!(response.outputs[1].parameters.is_empty());

    both.outputs[1].place = Some(Box::new(Place { region: "r".to_owned(), offset: 0, byte_size: 7 }));
    let encoded = json::encode(&batched(), &both, answer()).unwrap();
    assert_eq!(encoded.header_length, None);
    let last: serde_json::Value = serde_json::from_slice(&joined(&encoded.frames)).unwrap();
    assert_eq!(last["outputs"][1]["parameters"], json!({"shared_memory_region": "r", "shared_memory_byte_size": 7}));
}

#[test]
fn large_tensors_are_frames_of_their_own() {
    let large = Bytes::from(vec![7; 100_000]);
    let model = spec(0, vec![], vec![tensor("a", DataType::Uint8, &[-1]), tensor("b", DataType::Uint8, &[-1])]);
    let outputs = || {
        let large = Tensor { data: large.clone(), ..output(DataType::Uint8, &[100_000], vec![]) };
        Outputs::from_vec(vec![large, output(DataType::Uint8, &[3], vec![1, 2, 3])])
    };
    let both = plan("", &[(0, true), (1, true)]);

    let encoded = json::encode(&model, &both, outputs()).unwrap();
    let uncopied =
        |frames: &Frames| frames.iter().any(|frame| frame.as_ptr() == large.as_ptr() && frame.len() == large.len());
    assert!(uncopied(&encoded.frames));
    assert_eq!(joined(&encoded.frames)[encoded.header_length.unwrap()..], [&large[..], &[1, 2, 3]].concat());

    for frames in [
        grpc::encode(&model, &both, outputs()).unwrap(),
        grpc::encode_stream(&model, &both, Some(outputs()), StreamPart::More).unwrap(),
    ] {
        assert!(uncopied(&frames));
        assert_eq!(frames.len(), 3);
        assert_eq!(unframed(&frames).len(), joined(&frames).len() - grpc::PREFIX_BYTES);
    }
    let response =
        pb::ModelInferResponse::decode(&unframed(&grpc::encode(&model, &both, outputs()).unwrap())[..]).unwrap();
    assert_eq!(response.raw_output_contents, [large.clone(), Bytes::from_static(&[1, 2, 3])]);
}

#[test]
fn small_answers_are_one_frame() {
    let (model, outputs) = one(DataType::Fp32, &[16], vec![0; 64]);
    assert_eq!(json::encode(&model, &plan("", &[(0, true)]), outputs.clone()).unwrap().frames.len(), 1);
    assert_eq!(grpc::encode(&model, &plan("", &[(0, true)]), outputs).unwrap().len(), 1);
}

#[test]
fn every_type_is_written_as_json() {
    let cases: Vec<(DataType, Vec<u8>, &str)> = vec![
        (DataType::Bool, vec![0, 1], "[false,true]"),
        (DataType::Uint8, vec![0, 255], "[0,255]"),
        (DataType::Int8, vec![0x80, 1], "[-128,1]"),
        (DataType::Uint16, vec![255, 255, 1, 0], "[65535,1]"),
        (DataType::Int16, vec![255, 255, 1, 0], "[-1,1]"),
        (DataType::Uint32, vec![255, 255, 255, 255, 1, 0, 0, 0], "[4294967295,1]"),
        (DataType::Int32, vec![255, 255, 255, 255, 1, 0, 0, 0], "[-1,1]"),
        (
            DataType::Uint64,
            [u64::MAX, 0].iter().flat_map(|value| value.to_le_bytes()).collect(),
            "[18446744073709551615,0]",
        ),
        (
            DataType::Int64,
            [i64::MIN, 0].iter().flat_map(|value| value.to_le_bytes()).collect(),
            "[-9223372036854775808,0]",
        ),
        (DataType::Fp32, floats(&[0.1, -1e-7]), "[0.1,-1e-7]"),
        (DataType::Fp64, [0.1f64, 1e300].iter().flat_map(|value| value.to_le_bytes()).collect(), "[0.1,1e300]"),
        (DataType::Bytes, strings(&["é\u{1}".as_bytes(), b""]), "[\"é\\u0001\",\"\"]"),
    ];
    for (datatype, data, expected) in cases {
        let (model, outputs) = one(datatype, &[2], data);
        let encoded = json::encode(&model, &plan("", &[(0, false)]), outputs).unwrap();
        let body: serde_json::Value = serde_json::from_slice(&joined(&encoded.frames)).unwrap();
        let expected: serde_json::Value = serde_json::from_str(expected).unwrap();
        assert_eq!(body["outputs"][0]["data"], expected, "{datatype}");
    }
}

#[test]
fn what_json_can_not_say_is_an_error_that_asks_for_binary() {
    let cases = [
        (DataType::Fp32, floats(&[1.0, f32::NAN]), "element 1 is NaN"),
        (DataType::Fp32, floats(&[f32::INFINITY, 1.0]), "element 0"),
        (DataType::Fp64, [1.0, f64::NEG_INFINITY].iter().flat_map(|value| value.to_le_bytes()).collect(), "element 1"),
        (DataType::Bytes, strings(&[b"ok", b"\xff"]), "element 1 is not UTF-8"),
        (DataType::Fp16, vec![0; 4], "FP16"),
        (DataType::Bf16, vec![0; 4], "BF16"),
    ];
    for (datatype, data, piece) in cases {
        let (model, outputs) = one(datatype, &[2], data);
        let refused = json::encode(&model, &plan("", &[(0, false)]), outputs.clone());
        expect_refusal(piece, refused, Internal, &["'y'", piece, "binary_data"]);
        assert!(json::encode(&model, &plan("", &[(0, true)]), outputs).is_ok());
    }
}

#[test]
fn answers_that_do_not_match_the_model_are_internal_errors() {
    let plan = plan("", &[(0, false), (1, false)]);
    let (model, outputs) = (batched(), Outputs::from_vec(vec![answer()[0].clone()]));
    expect_refusal("json", json::encode(&model, &plan, outputs.clone()), Internal, &["'m'", "2 outputs", "got 1"]);
    expect_refusal("grpc", grpc::encode(&model, &plan, outputs), Internal, &["'m'", "2 outputs", "got 1"]);
    let (model, outputs) = one(DataType::Fp32, &[2], vec![0; 7]);
    expect_refusal(
        "bytes",
        json::encode(&model, &self::plan("", &[(0, false)]), outputs),
        Internal,
        &["'y'", "8 bytes", "7"],
    );
}

#[test]
fn an_output_that_lies_on_a_device_is_an_internal_error_and_never_empty() {
    let (plan, model) = (plan("", &[(1, true)]), batched());
    let mut outputs = answer();
    outputs[1].data = Bytes::new();
    outputs[1].device = Some(Box::new(OnDevice { byte_size: 8, owner: Arc::new(()) }));
    let pieces = ["'m'", "lies on a device"];
    expect_refusal("json", json::encode(&model, &plan, outputs.clone()), Internal, &pieces);
    expect_refusal("grpc", grpc::encode(&model, &plan, outputs), Internal, &pieces);
}

#[test]
fn grpc_answers_are_raw() {
    let frames = grpc::encode(&batched(), &plan("a", &[(1, true), (0, true)]), answer()).unwrap();
    let response = pb::ModelInferResponse::decode(&unframed(&frames)[..]).unwrap();
    let output = |name: &str, datatype: &str, shape: &[i64]| pb::model_infer_response::InferOutputTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: shape.to_vec(),
        ..Default::default()
    };
    let expected = pb::ModelInferResponse {
        model_name: "m".into(),
        model_version: "3".into(),
        id: "a".into(),
        outputs: vec![output("s", "BYTES", &[1, 1]), output("y", "FP32", &[1, 2])],
        raw_output_contents: vec![strings(&[b"h\"i"]).into(), floats(&[1.0, -2.5]).into()],
        ..Default::default()
    };
    assert_eq!(response, expected);
    // A scalar has no shape to write, and an empty tensor still has its place.
    let (model, outputs) = one(DataType::Fp32, &[], floats(&[1.0]));
    let frames = grpc::encode(&model, &plan("", &[(0, true)]), outputs).unwrap();
    assert!(pb::ModelInferResponse::decode(&unframed(&frames)[..]).unwrap().outputs[0].shape.is_empty());
    let (model, outputs) = one(DataType::Fp32, &[0, 1 << 40], vec![]);
    let frames = grpc::encode(&model, &plan("", &[(0, true)]), outputs).unwrap();
    let response = pb::ModelInferResponse::decode(&unframed(&frames)[..]).unwrap();
    assert_eq!((&response.outputs[0].shape[..], response.raw_output_contents.len()), (&[0, 1 << 40][..], 1));
}

#[test]
fn stream_answers_say_whether_they_are_final() {
    let is_final =
        |response: &pb::ModelInferResponse| response.parameters["triton_final_response"].parameter_choice.clone();
    let said = |value| Some(pb::infer_parameter::ParameterChoice::BoolParam(value));
    for (outputs, part, expected) in [
        (Some(answer()), StreamPart::More, false),
        (Some(answer()), StreamPart::Final, true),
        (None, StreamPart::Final, true),
    ] {
        let count = outputs.as_ref().map_or(0, |outputs| outputs.len());
        let frames = grpc::encode_stream(&batched(), &plan("a", &[(0, true), (1, true)]), outputs, part).unwrap();
        let message = pb::ModelStreamInferResponse::decode(&unframed(&frames)[..]).unwrap();
        assert_eq!(message.error_message, "");
        let response = message.infer_response.unwrap();
        assert_eq!((is_final(&response), response.id.as_str()), (said(expected), "a"));
        assert_eq!((response.outputs.len(), response.raw_output_contents.len()), (count, count));
    }
    for id in ["", "a"] {
        let framed = grpc::encode_stream_error(id, "no").unwrap();
        let message = pb::ModelStreamInferResponse::decode(&framed[grpc::PREFIX_BYTES..]).unwrap();
        assert_eq!(message.error_message, "no");
        let response = message.infer_response.unwrap();
        assert_eq!((is_final(&response), response.id.as_str()), (said(true), id));
        assert_eq!(
            framed.len(),
            grpc::PREFIX_BYTES
                + pb::ModelStreamInferResponse::decode(&framed[grpc::PREFIX_BYTES..]).unwrap().encoded_len()
        );
    }
}

#[test]
fn errors_are_one_json_object() {
    for message in ["plain", "quote \" slash \\ line\n é \u{1}", ""] {
        let body: serde_json::Value = serde_json::from_slice(&json::error(message)).unwrap();
        assert_eq!(body, json!({"error": message}));
    }
}

#[test]
fn metadata_shows_the_batch_dimension() {
    let model: serde_json::Value = serde_json::from_slice(&metadata::model_json(&batched(), &[1, 3])).unwrap();
    let tensor =
        |name: &str, datatype: &str, shape: &[i64]| json!({"name": name, "datatype": datatype, "shape": shape});
    let expected = json!({
        "name": "m", "versions": ["1", "3"], "platform": "python",
        "inputs": [tensor("x", "FP32", &[-1, 4]), tensor("n", "INT64", &[-1])],
        "outputs": [tensor("y", "FP32", &[-1, 2]), tensor("s", "BYTES", &[-1, 1])],
    });
    assert_eq!(model, expected);
    let message = metadata::model_pb(&batched(), &[1, 3]);
    assert_eq!(
        (message.inputs[0].shape.as_slice(), message.versions),
        (&[-1, 4][..], vec!["1".to_owned(), "3".to_owned()])
    );
    let unbatched = spec(0, vec![], vec![common::tensor("y", DataType::Fp32, &[2])]);
    assert_eq!(metadata::model_pb(&unbatched, &[3]).outputs[0].shape, [2]);
    let server: serde_json::Value =
        serde_json::from_slice(&metadata::server_json("penstock", "1", &["statistics".to_owned()])).unwrap();
    assert_eq!(server, json!({"name": "penstock", "version": "1", "extensions": ["statistics"]}));
    assert_eq!(metadata::server_pb("penstock", "1", &["statistics".to_owned()]).extensions, ["statistics"]);
}
