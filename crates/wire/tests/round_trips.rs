//! Tensors of every type survive the way through each wire format, bit by bit.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use bytes::Bytes;
use common::{output, spec, tensor};
use penstock_schema::{DataType, ModelSpec, Outputs, Tensor};
use penstock_wire::grpc::{self, pb};
use penstock_wire::{ReplyPlan, WantedOutput, json, validate::validate};
use proptest::prelude::*;
use prost::Message;

/// A tensor of any type and up to three dimensions, sizes of zero included. NaN and any BYTES unless `json`.
fn tensors(json: bool) -> impl Strategy<Value = Tensor> {
    let types: Vec<DataType> = DataType::ALL
        .into_iter()
        .filter(|datatype| !json || !matches!(datatype, DataType::Fp16 | DataType::Bf16))
        .collect();
    (prop::sample::select(types), prop::collection::vec(0i64..4, 0..4)).prop_flat_map(move |(datatype, shape)| {
        let count = shape.iter().product::<i64>() as usize;
        element(datatype, json)
            .prop_flat_map(move |element| prop::collection::vec(element, count))
            .prop_map(move |elements| output(datatype, &shape, elements.concat()))
    })
}

fn element(datatype: DataType, json: bool) -> impl Strategy<Value = BoxedStrategy<Vec<u8>>> {
    let strategy = match (datatype, datatype.size()) {
        (DataType::Bool, _) => any::<bool>().prop_map(|value| vec![u8::from(value)]).boxed(),
        (DataType::Fp32, _) if json => prop::num::f32::ANY
            .prop_filter("finite", |value| value.is_finite())
            .prop_map(|value| value.to_le_bytes().to_vec())
            .boxed(),
        (DataType::Fp64, _) if json => prop::num::f64::ANY
            .prop_filter("finite", |value| value.is_finite())
            .prop_map(|value| value.to_le_bytes().to_vec())
            .boxed(),
        (_, Some(size)) => prop::collection::vec(any::<u8>(), size).boxed(),
        (_, None) if json => any::<String>().prop_map(|text| common::strings(&[text.as_bytes()])).boxed(),
        (_, None) => prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| common::strings(&[&bytes])).boxed(),
    };
    Just(strategy)
}

/// A model whose inputs and outputs are those tensors, named so that they need escapes.
fn model(tensors: &[Tensor]) -> ModelSpec {
    let named =
        |(index, described): (usize, &Tensor)| tensor(&format!("t\"{index}\n"), described.datatype, &described.shape);
    let specs: Vec<_> = tensors.iter().enumerate().map(named).collect();
    spec(0, specs.clone(), specs)
}

fn plan(id: &str, tensors: &[Tensor], binary: impl Fn(usize) -> bool) -> ReplyPlan {
    let outputs = (0..tensors.len()).map(|index| WantedOutput { index, binary: binary(index), place: None }).collect();
    ReplyPlan { id: id.to_owned(), outputs, ..ReplyPlan::default() }
}

/// An answer has the form of a request but for one key, so what was encoded can be decoded as one.
fn json_round_trip(id: &str, tensors: Vec<Tensor>, binary: impl Fn(usize) -> bool) {
    let model = model(&tensors);
    let encoded = json::encode(&model, &plan(id, &tensors, binary), Outputs::from_vec(tensors.clone())).unwrap();
    let whole = encoded.frames.concat();
    let (header, data) = whole.split_at(encoded.header_length.unwrap_or(whole.len()));
    let header = String::from_utf8(header.to_vec()).unwrap().replacen("\"outputs\":[", "\"inputs\":[", 1);
    let length = header.len();
    let body = Bytes::from([header.as_bytes(), data].concat());
    // All wanted as binary, so that half-precision outputs are not refused.
    let mut raw = json::decode(&body, encoded.header_length.map(|_| length)).unwrap();
    raw.parameters.binary_data_output = true;
    let request = validate(&model, raw).unwrap();
    assert_eq!(request.plan.id, id);
    assert_eq!(request.inputs.into_iter().map(Option::unwrap).collect::<Vec<_>>(), tensors);
}

proptest! {
    #[test]
    fn json(tensors in prop::collection::vec(tensors(true), 0..4), id in "[a-z\"é]{0,8}") {
        json_round_trip(&id, tensors, |_| false);
    }

    #[test]
    fn binary(tensors in prop::collection::vec(tensors(false), 0..4), id in "[a-z]{0,8}") {
        json_round_trip(&id, tensors, |_| true);
    }

    #[test]
    fn json_and_binary_mixed(tensors in prop::collection::vec(tensors(true), 0..6), choice in any::<u8>()) {
        json_round_trip("", tensors, |index| choice >> index & 1 == 1);
    }

    #[test]
    fn grpc(tensors in prop::collection::vec(tensors(false), 0..4), id in "[a-z]{0,8}") {
        let model = model(&tensors);
        let framed = grpc::encode(&model, &plan(&id, &tensors, |_| true), Outputs::from_vec(tensors.clone())).unwrap().concat();
        let response = pb::ModelInferResponse::decode(&framed[grpc::PREFIX_BYTES..]).unwrap();
        let input = |output: pb::model_infer_response::InferOutputTensor| pb::model_infer_request::InferInputTensor {
            name: output.name,
            datatype: output.datatype,
            shape: output.shape,
            ..Default::default()
        };
        let request = pb::ModelInferRequest {
            model_name: response.model_name,
            id: response.id,
            inputs: response.outputs.into_iter().map(input).collect(),
            raw_input_contents: response.raw_output_contents,
            ..Default::default()
        };
        let message = Bytes::from(request.encode_to_vec());
        let request = validate(&model, grpc::decode(&message).unwrap().request).unwrap();
        prop_assert_eq!(request.plan.id, id);
        prop_assert_eq!(request.inputs.into_iter().map(Option::unwrap).collect::<Vec<_>>(), tensors);
    }
}
