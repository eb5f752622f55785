//! What the fuzz targets run, and a property test with them: any bytes, every entry point, never a panic.
//!
//! A request that passes is answered as well, so the encoders meet whatever validation lets through.
#![allow(clippy::expect_used)] // A panic is how a fuzz target reports.

use crate::compress::{self, Encoding};
use crate::validate::validate;
use crate::{RawRequest, grpc, json};
use bytes::Bytes;
use penstock_schema::{DataType, ModelSpec, Outputs, Result, Tensor, TensorSpec};
use prost::Message;

/// Far below the real limit, so that bombs are met often.
const INFLATE_LIMIT: usize = 1 << 16;

/// Models of a few shapes: batched or not, optional inputs, every type.
pub fn specs() -> Vec<ModelSpec> {
    let tensor = |name: &str, datatype, dims: &[i64], optional| TensorSpec {
        name: name.to_owned(),
        datatype,
        dims: dims.to_vec(),
        optional,
    };
    let spec = |name: &str, max_batch_size, inputs: Vec<TensorSpec>| ModelSpec {
        name: name.to_owned(),
        version: 1,
        platform: String::new(),
        max_batch_size,
        outputs: inputs.clone(),
        inputs,
        padding: None,
        on_device: false,
        config_json: Bytes::new(),
        config_proto: Bytes::new(),
    };
    let all = |datatype: DataType| tensor(&datatype.name().to_lowercase(), datatype, &[-1], true);
    vec![
        spec("batched", 8, vec![tensor("x", DataType::Fp32, &[4], false)]),
        spec("text", 0, vec![tensor("x", DataType::Bytes, &[-1], false)]),
        spec("pair", 4, vec![tensor("x", DataType::Fp32, &[-1], false), tensor("y", DataType::Int64, &[], true)]),
        spec("every", 0, DataType::ALL.into_iter().map(all).collect()),
    ]
}

/// Two bytes choose the header length and the kind of body; the rest is the body.
pub fn json_decode(data: &[u8]) {
    let Some((choice, body)) = data.split_first_chunk::<2>() else {
        return;
    };
    let body = Bytes::copy_from_slice(body);
    let choice = usize::from(u16::from_le_bytes(*choice));
    let header_length = (choice < usize::from(u16::MAX)).then_some(choice);
    for spec in specs() {
        answer(&spec, json::decode(&body, header_length));
        answer(&spec, json::decode_raw(&spec, &body));
    }
}

pub fn grpc_decode(data: &[u8]) {
    let message = Bytes::copy_from_slice(data);
    let ours = grpc::decode(&message);
    // What we take, the generated decoder must take, and it must see the same.
    if let Ok(call) = &ours {
        let theirs = grpc::pb::ModelInferRequest::decode(message.clone());
        let theirs = theirs.expect("decoded here, so the generated decoder takes it, too");
        assert_eq!(call.model_name, theirs.model_name);
        assert_eq!(call.request.id, theirs.id);
        assert_eq!(call.request.inputs.len(), theirs.inputs.len());
        for (index, (input, other)) in call.request.inputs.iter().zip(&theirs.inputs).enumerate() {
            assert_eq!(
                (&*input.name, input.datatype.name(), &*input.shape),
                (&*other.name, &*other.datatype, &*other.shape)
            );
            let earlier = call.request.inputs[..index].iter().filter(|input| input.place.is_none()).count();
            if let (None, Some(raw)) = (&input.place, theirs.raw_input_contents.get(earlier)) {
                assert_eq!(&input.data, raw);
            }
        }
    }
    for spec in specs() {
        answer(&spec, grpc::decode(&message).map(|call| call.request));
    }
}

pub fn inflate(data: &[u8]) {
    for encoding in [Encoding::Gzip, Encoding::Deflate] {
        if let Ok(plain) = compress::inflate(encoding, data, INFLATE_LIMIT) {
            assert!(plain.len() <= INFLATE_LIMIT);
            let again = compress::inflate(encoding, &compress::deflate(encoding, &[&plain]), INFLATE_LIMIT);
            assert_eq!(again.as_ref(), Ok(&plain));
        }
    }
}

/// Validates a request; one that fits is answered with its own inputs, in every form. A refusal must be short and in one line.
fn answer(spec: &ModelSpec, raw: Result<RawRequest<'_>>) {
    let request = match raw.map(without_places).and_then(|raw| validate(spec, raw)) {
        Ok(request) => request,
        Err(error) => {
            assert!(error.message.len() < 4096 && !error.message.contains(char::is_control), "{error}");
            return;
        }
    };
    let outputs: Outputs = request
        .inputs
        .iter()
        .zip(&spec.outputs)
        .map(|(input, output)| {
            input.clone().unwrap_or_else(|| Tensor::new(output.datatype, [0].into_iter().collect(), Bytes::new()))
        })
        .collect();
    let framed = grpc::encode(spec, &request.plan, outputs.clone()).expect("valid outputs can be encoded");
    let framed: Vec<u8> = framed.iter().flatten().copied().collect();
    let response = grpc::pb::ModelInferResponse::decode(&framed[grpc::PREFIX_BYTES..]).expect("our own answer");
    assert_eq!(response.id, request.plan.id);
    assert_eq!(response.raw_output_contents.len(), request.plan.outputs.len());
    let mut plan = request.plan;
    // NaN and strings that aren't UTF-8 are refused as JSON; whatever is written must parse.
    for binary in [false, true] {
        plan.outputs.iter_mut().for_each(|output| output.binary = binary);
        if let Ok(encoded) = json::encode(spec, &plan, outputs.clone()) {
            let body: Vec<u8> = encoded.frames.iter().flatten().copied().collect();
            let header = &body[..encoded.header_length.unwrap_or(body.len())];
            serde_json::from_slice::<serde_json::Value>(header).expect("our own answer");
        }
    }
}

/// As if every place had been read, and held nothing.
fn without_places(mut request: RawRequest<'_>) -> RawRequest<'_> {
    request.inputs.iter_mut().for_each(|input| input.place = None);
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{fs, path::Path};

    /// The seeds of a fuzz target: whole requests, which random bytes would hardly hit upon.
    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut paths: Vec<_> =
            fs::read_dir(folder).expect("a corpus").map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        assert!(!paths.is_empty());
        paths.into_iter().map(|path| fs::read(path).expect("a seed")).collect()
    }

    /// One change to a seed.
    #[derive(Clone, Debug)]
    enum Mutation {
        Set(prop::sample::Index, u8),
        Insert(prop::sample::Index, Vec<u8>),
        Remove(prop::sample::Index, usize),
        Cut(prop::sample::Index),
    }

    fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
        let position = any::<prop::sample::Index>;
        let one = prop_oneof![
            (position(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
            (position(), prop::sample::select(b"0123456789-.eE[]{},:\"\\\x00\xff".to_vec()))
                .prop_map(|(at, byte)| Mutation::Set(at, byte)),
            (position(), prop::collection::vec(any::<u8>(), 1..8)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
            (position(), 1usize..16).prop_map(|(at, count)| Mutation::Remove(at, count)),
            position().prop_map(Mutation::Cut),
        ];
        prop::collection::vec(one, 0..6)
    }

    fn mutate(mut bytes: Vec<u8>, mutations: Vec<Mutation>) -> Vec<u8> {
        for mutation in mutations {
            let length = bytes.len();
            match mutation {
                _ if length == 0 => {}
                Mutation::Set(at, byte) => bytes[at.index(length)] = byte,
                Mutation::Insert(at, new) => drop(bytes.splice(at.index(length)..at.index(length), new)),
                Mutation::Remove(at, count) => {
                    drop(bytes.drain(at.index(length)..(at.index(length) + count).min(length)))
                }
                Mutation::Cut(at) => bytes.truncate(at.index(length)),
            }
        }
        bytes
    }

    fn inputs(target: &str) -> impl Strategy<Value = Vec<u8>> {
        let mutated =
            (prop::sample::select(seeds(target)), mutations()).prop_map(|(seed, changes)| mutate(seed, changes));
        prop_oneof![1 => prop::collection::vec(any::<u8>(), 0..256), 8 => mutated]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn json_decoding_never_panics(data in inputs("json_decode")) {
            json_decode(&data);
        }

        #[test]
        fn grpc_decoding_never_panics_and_agrees_with_prost(data in inputs("grpc_decode")) {
            grpc_decode(&data);
        }

        #[test]
        fn inflating_never_panics(data in inputs("inflate")) {
            inflate(&data);
        }
    }

    #[test]
    fn seeds_are_requests_that_fit_a_model() {
        for seed in seeds("json_decode") {
            let (choice, body) = seed.split_first_chunk::<2>().expect("two bytes of choice");
            let choice = usize::from(u16::from_le_bytes(*choice));
            let body = Bytes::copy_from_slice(body);
            let header_length = (choice < usize::from(u16::MAX)).then_some(choice);
            let fits = |spec: &ModelSpec| match header_length {
                Some(0) => json::decode_raw(spec, &body).and_then(|raw| validate(spec, raw)).is_ok(),
                _ => json::decode(&body, header_length).and_then(|raw| validate(spec, raw)).is_ok(),
            };
            assert!(specs().iter().any(fits), "{}", String::from_utf8_lossy(&body));
        }
        for seed in seeds("grpc_decode") {
            let message = Bytes::from(seed);
            let fits = |spec: &ModelSpec| grpc::decode(&message).and_then(|call| validate(spec, call.request)).is_ok();
            assert!(specs().iter().any(fits), "{message:?}");
        }
        for seed in seeds("inflate") {
            let inflates = |encoding| compress::inflate(encoding, &seed, INFLATE_LIMIT).is_ok();
            assert!(inflates(Encoding::Gzip) || inflates(Encoding::Deflate));
        }
    }
}
