//! What `ModelInferRequest` messages are taken for, and which are refused with which words.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use bytes::Bytes;
use common::{expect_refusal, floats, strings};
use pb::infer_parameter::ParameterChoice::{BoolParam, DoubleParam, Int64Param, StringParam, Uint64Param};
use pb::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use pb::{InferParameter, InferTensorContents, ModelInferRequest};
use penstock_schema::Code::{InvalidArgument, Unsupported};
use penstock_wire::grpc::{self, Prefix, pb};
use penstock_wire::{Place, RawOutput, Value};
use prost::Message;
use std::collections::BTreeMap;

fn encoded(message: &ModelInferRequest) -> Bytes {
    message.encode_to_vec().into()
}

fn tensor(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor { name: name.into(), datatype: datatype.into(), shape: shape.to_vec(), ..Default::default() }
}

fn parameters<const N: usize>(
    entries: [(&str, pb::infer_parameter::ParameterChoice); N],
) -> BTreeMap<String, InferParameter> {
    entries.map(|(name, choice)| (name.to_owned(), InferParameter { parameter_choice: Some(choice) })).into()
}

/// One FP32 input of two elements, raw.
fn raw() -> ModelInferRequest {
    ModelInferRequest {
        model_name: "m".into(),
        inputs: vec![tensor("x", "FP32", &[2])],
        raw_input_contents: vec![floats(&[1.0, 2.0]).into()],
        ..Default::default()
    }
}

fn typed(datatype: &str, contents: InferTensorContents) -> ModelInferRequest {
    ModelInferRequest {
        inputs: vec![InferInputTensor { contents: Some(contents), ..tensor("x", datatype, &[2]) }],
        ..Default::default()
    }
}

#[test]
fn raw_contents_are_slices_of_the_message() {
    let message = encoded(&ModelInferRequest {
        model_version: "7".into(),
        id: "a".into(),
        inputs: vec![tensor("x", "FP32", &[2]), tensor("e", "INT8", &[0]), tensor("z", "UINT8", &[1, 3])],
        outputs: vec![InferRequestedOutputTensor {
            name: "y".into(),
            parameters: parameters([("binary_data", BoolParam(false)), ("classification", Int64Param(0))]),
        }],
        raw_input_contents: vec![floats(&[1.0, 2.0]).into(), Bytes::new(), Bytes::from_static(b"abc")],
        ..raw()
    });
    let call = grpc::decode(&message).unwrap();
    assert_eq!((call.model_name, call.model_version, call.request.id.as_ref()), ("m", "7", "a"));
    let range = message.as_ptr_range();
    for (index, expected) in [floats(&[1.0, 2.0]), vec![], b"abc".to_vec()].iter().enumerate() {
        let data = &call.request.inputs[index].data;
        assert_eq!(data, expected);
        assert!(data.is_empty() || range.contains(&data.as_ptr()));
    }
    assert_eq!(call.request.inputs[2].shape.as_slice(), [1, 3]);
    assert_eq!(call.request.outputs.as_slice(), [RawOutput { name: "y".into(), binary: Some(true), place: None }]);
}

#[test]
fn typed_contents_become_tensor_bytes() {
    let none = InferTensorContents::default;
    let cases: Vec<(&str, InferTensorContents, Vec<u8>)> = vec![
        ("BOOL", InferTensorContents { bool_contents: vec![true, false], ..none() }, vec![1, 0]),
        ("INT8", InferTensorContents { int_contents: vec![-128, 127], ..none() }, vec![0x80, 0x7f]),
        ("INT16", InferTensorContents { int_contents: vec![-1, 256], ..none() }, vec![255, 255, 0, 1]),
        ("INT32", InferTensorContents { int_contents: vec![-1, 1], ..none() }, vec![255, 255, 255, 255, 1, 0, 0, 0]),
        ("INT64", InferTensorContents { int64_contents: vec![i64::MIN], ..none() }, i64::MIN.to_le_bytes().into()),
        ("UINT8", InferTensorContents { uint_contents: vec![255], ..none() }, vec![255]),
        ("UINT16", InferTensorContents { uint_contents: vec![65_535], ..none() }, vec![255, 255]),
        ("UINT32", InferTensorContents { uint_contents: vec![u32::MAX], ..none() }, vec![255; 4]),
        ("UINT64", InferTensorContents { uint64_contents: vec![u64::MAX], ..none() }, vec![255; 8]),
        ("FP32", InferTensorContents { fp32_contents: vec![1.5, f32::NAN], ..none() }, floats(&[1.5, f32::NAN])),
        ("FP64", InferTensorContents { fp64_contents: vec![0.1], ..none() }, 0.1f64.to_le_bytes().into()),
        (
            "BYTES",
            InferTensorContents { bytes_contents: vec![Bytes::new(), Bytes::from_static(b"\xff")], ..none() },
            strings(&[b"", b"\xff"]),
        ),
    ];
    for (datatype, contents, expected) in cases {
        let message = encoded(&typed(datatype, contents));
        assert_eq!(grpc::decode(&message).unwrap().request.inputs[0].data, expected, "{datatype}");
    }
    // The same unpacked: a shape of one varint, contents of two fixed32 fields.
    let input = b"\x0a\x01x\x12\x04FP32\x18\x02\x2a\x0a\x35\x00\x00\x80\x3f\x35\x00\x00\x00\x40";
    let message = Bytes::from([&[0x2a, input.len() as u8], &input[..]].concat());
    let call = grpc::decode(&message).unwrap();
    assert_eq!(
        (&call.request.inputs[0].data[..], call.request.inputs[0].shape.as_slice()),
        (&floats(&[1.0, 2.0])[..], &[2][..])
    );
}

#[test]
fn parameters_are_read_by_name() {
    let sent = parameters([
        ("priority", Uint64Param(3)),
        ("timeout", Int64Param(9)),
        ("triton_enable_empty_final_response", BoolParam(true)),
        ("sequence_id", StringParam("s".into())),
        ("flag", BoolParam(false)),
        ("half", DoubleParam(0.5)),
        ("int", Int64Param(-5)),
        ("text", StringParam("v".into())),
    ]);
    let message = encoded(&ModelInferRequest { parameters: sent, ..raw() });
    let parameters = grpc::decode(&message).unwrap().request.parameters;
    assert_eq!((parameters.priority, parameters.timeout_us, parameters.empty_final_response), (3, 9, true));
    let custom = [
        ("flag", Value::Bool(false)),
        ("half", Value::Double(0.5)),
        ("int", Value::Int(-5)),
        ("text", Value::String("v".into())),
    ];
    assert_eq!(parameters.custom, custom.map(|(name, value)| (name.into(), value)));
}

#[test]
fn messages_that_do_not_hold_together_are_refused() {
    let contents = InferTensorContents { fp32_contents: vec![1.0, 2.0], ..Default::default() };
    let with = |name: &str, choice| ModelInferRequest { parameters: parameters([(name, choice)]), ..raw() };
    let raws = |count| ModelInferRequest { raw_input_contents: vec![Bytes::from_static(b"12345678"); count], ..raw() };
    let cases: Vec<(&str, ModelInferRequest, &[&str])> = vec![
        (
            "typed and raw",
            ModelInferRequest { raw_input_contents: raw().raw_input_contents, ..typed("FP32", contents.clone()) },
            &["'x'", "both"],
        ),
        ("more raw than inputs", raws(2), &["raw_input_contents", "1 inputs", "got 2"]),
        (
            "fewer raw than inputs",
            ModelInferRequest { inputs: vec![tensor("x", "FP32", &[2]); 3], ..raw() },
            &["3 inputs", "got 1"],
        ),
        ("raw without inputs", ModelInferRequest { inputs: vec![], ..raw() }, &["0 inputs", "got 1"]),
        ("FP99", ModelInferRequest { inputs: vec![tensor("x", "FP99", &[2])], ..raw() }, &["'x'", "'FP99'"]),
        ("no datatype", ModelInferRequest { inputs: vec![tensor("x", "", &[2])], ..raw() }, &["'x'", "datatype"]),
        ("negative size", ModelInferRequest { inputs: vec![tensor("x", "FP32", &[2, -5])], ..raw() }, &["'x'", "-5"]),
        (
            "10,000 dims",
            ModelInferRequest { inputs: vec![tensor("x", "FP32", &[1; 10_000])], ..raw() },
            &["'x'", "32 dimensions"],
        ),
        ("contents of another type", typed("INT64", contents.clone()), &["'x'", "int64_contents", "fp32_contents"]),
        ("FP16 contents", typed("FP16", contents), &["FP16", "raw_input_contents"]),
        (
            "128 as INT8",
            typed("INT8", InferTensorContents { int_contents: vec![128], ..Default::default() }),
            &["'x'", "INT8", "128"],
        ),
        (
            "300 as UINT8",
            typed("UINT8", InferTensorContents { uint_contents: vec![300], ..Default::default() }),
            &["UINT8", "300"],
        ),
        (
            "1,025 inputs",
            ModelInferRequest { inputs: vec![tensor("x", "FP32", &[]); 1_025], ..Default::default() },
            &["inputs", "1024"],
        ),
        (
            "100,000 empty inputs",
            ModelInferRequest { inputs: vec![InferInputTensor::default(); 100_000], ..Default::default() },
            &["datatype"],
        ),
        ("1,025 raw", raws(1_025), &["raw_input_contents", "1024"]),
        (
            "100,000 outputs",
            ModelInferRequest { outputs: vec![InferRequestedOutputTensor::default(); 100_000], ..raw() },
            &["outputs", "1024"],
        ),
        (
            "1,025 parameters",
            ModelInferRequest {
                parameters: (0..1_025)
                    .map(|index| (index.to_string(), InferParameter { parameter_choice: Some(BoolParam(true)) }))
                    .collect(),
                ..raw()
            },
            &["parameters", "1024"],
        ),
        ("id with a line break", ModelInferRequest { id: "a\r\nb".into(), ..raw() }, &["id", "control"]),
        ("id of 1 MB", ModelInferRequest { id: "a".repeat(1_000_000), ..raw() }, &["id", "1024"]),
        ("negative timeout", with("timeout", Int64Param(-1)), &["'timeout'", "-1"]),
        ("fractional timeout", with("timeout", DoubleParam(1.5)), &["'timeout'", "1.5"]),
        ("priority as text", with("priority", StringParam("1".into())), &["'priority'"]),
        ("reserved", with("triton_x", BoolParam(true)), &["'triton_x'", "reserved"]),
        (
            "no value",
            ModelInferRequest { parameters: [("a".to_owned(), InferParameter::default())].into(), ..raw() },
            &["'a'", "value"],
        ),
    ];
    for (case, message, pieces) in cases {
        expect_refusal(case, grpc::decode(&encoded(&message)), InvalidArgument, pieces);
    }
}

#[test]
fn features_that_are_not_there_are_unsupported_rather_than_wrong() {
    let classes = parameters([("classification", Int64Param(3))]);
    let outputs = vec![InferRequestedOutputTensor { name: "y".into(), parameters: classes }];
    let message = ModelInferRequest { outputs, ..raw() };
    expect_refusal("classes", grpc::decode(&encoded(&message)), Unsupported, &["classification"]);
}

/// Contents are by position, and tensors in shared memory have none.
#[test]
fn raw_contents_skip_tensors_in_shared_memory() {
    let there =
        || parameters([("shared_memory_region", StringParam("r".into())), ("shared_memory_byte_size", Int64Param(8))]);
    let elsewhere = |name| InferInputTensor { parameters: there(), ..tensor(name, "FP32", &[2]) };
    let here = |name| tensor(name, "FP32", &[2]);
    let contents = |byte: u8| Bytes::from(vec![byte; 8]);
    let message = ModelInferRequest {
        inputs: vec![elsewhere("a"), here("b"), elsewhere("c"), here("d")],
        outputs: vec![InferRequestedOutputTensor { name: "y".into(), parameters: there() }],
        raw_input_contents: vec![contents(1), contents(2)],
        ..raw()
    };
    let message = encoded(&message);
    let call = grpc::decode(&message).unwrap();
    let place = Place { region: "r".into(), offset: 0, byte_size: 8 };
    let found: Vec<_> = call.request.inputs.iter().map(|input| (input.place.as_deref(), input.data.clone())).collect();
    let expected =
        [(Some(&place), Bytes::new()), (None, contents(1)), (Some(&place), Bytes::new()), (None, contents(2))];
    assert_eq!(found, expected);
    assert_eq!(call.request.outputs[0].place.as_deref(), Some(&place));

    let all = ModelInferRequest { inputs: vec![elsewhere("a")], raw_input_contents: vec![], ..raw() };
    assert!(grpc::decode(&encoded(&all)).is_ok());
    let one = |inputs, raw_input_contents| encoded(&ModelInferRequest { inputs, raw_input_contents, ..raw() });
    let more = one(vec![elsewhere("a"), here("b")], vec![contents(1), contents(2)]);
    expect_refusal("one for each", grpc::decode(&more), InvalidArgument, &["1 inputs", "shared memory", "got 2"]);
    let typed = InferTensorContents { fp32_contents: vec![1.0, 2.0], ..Default::default() };
    let both = one(vec![InferInputTensor { contents: Some(typed), ..elsewhere("a") }], vec![]);
    expect_refusal("both", grpc::decode(&both), InvalidArgument, &["'a'", "both"]);
}

#[test]
fn bytes_that_are_no_protobuf_are_refused() {
    let whole = encoded(&ModelInferRequest { id: "a".into(), ..raw() });
    let mut refused = 0;
    for length in 1..whole.len() {
        // Some cuts fall between fields and leave a smaller sound message; the generated decoder knows which.
        let cut = whole.slice(..length);
        if ModelInferRequest::decode(cut.clone()).is_err() {
            expect_refusal("cut", grpc::decode(&cut), InvalidArgument, &["protobuf"]);
            refused += 1;
        }
    }
    assert!(refused > whole.len() / 2);
    let cases: [(&str, &[u8]); 8] = [
        ("wrong wire type", b"\x08\x01"),
        ("field 0", b"\x02\x00"),
        ("group", b"\x0b\x0c"),
        ("length past the end", b"\x0a\x05ab"),
        ("length of 2^63", b"\x3a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"),
        ("varint of 11 bytes", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        ("field number of 30 bits", b"\x80\x80\x80\x80\x20\x00"),
        ("unknown field cut", b"\x9d\x06\x01"),
    ];
    for (case, message) in cases {
        expect_refusal(case, grpc::decode(&Bytes::from_static(message)), InvalidArgument, &["protobuf"]);
    }
    expect_refusal("bad UTF-8", grpc::decode(&Bytes::from_static(b"\x0a\x01\xff")), InvalidArgument, &["UTF-8"]);
}

#[test]
fn unknown_fields_are_skipped() {
    let unknown = b"\xa0\x06\x01\xa1\x06\x00\x00\x00\x00\x00\x00\x00\x00\xa2\x06\x01z\xa5\x06\x00\x00\x00\x00";
    let whole = encoded(&raw());
    let message = Bytes::from([&unknown[..], &whole].concat());
    assert_eq!(grpc::decode(&message), grpc::decode(&whole));
}

#[test]
fn prefixes_round_trip() {
    for (bytes, prefix) in [
        ([0, 0, 0, 0, 0], Prefix { compressed: false, length: 0 }),
        ([1, 0, 1, 0, 2], Prefix { compressed: true, length: 65_538 }),
        ([0, 255, 255, 255, 255], Prefix { compressed: false, length: u32::MAX }),
    ] {
        assert_eq!(grpc::unframe(bytes).unwrap(), prefix);
        assert_eq!(grpc::prefix(prefix), bytes);
    }
    assert!(grpc::unframe([2, 0, 0, 0, 0]).is_err());
    let framed = grpc::frame(&pb::ServerLiveResponse { live: true }).unwrap();
    assert_eq!(&framed[..], b"\x00\x00\x00\x00\x02\x08\x01");
    assert_eq!(&grpc::frame_compressed(b"zz").unwrap()[..], b"\x01\x00\x00\x00\x02zz");
}

#[test]
fn descriptors_name_every_service() {
    let set = prost_types::FileDescriptorSet::decode(pb::DESCRIPTORS).unwrap();
    let services: Vec<String> = set
        .file
        .iter()
        .flat_map(|file| file.service.iter().map(|service| format!("{}.{}", file.package(), service.name())))
        .collect();
    for name in [
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ] {
        assert!(services.iter().any(|service| service == name), "{name} in {services:?}");
    }
}

#[test]
fn an_encoded_configuration_is_sent_as_it_is() {
    let config = pb::ModelConfig { name: "m".into(), max_batch_size: 8, ..Default::default() };
    let raw = pb::RawModelConfigResponse { config: config.encode_to_vec().into() };
    let response = pb::ModelConfigResponse::decode(raw.encode_to_vec().as_slice()).unwrap();
    assert_eq!(response.config, Some(config));
}
