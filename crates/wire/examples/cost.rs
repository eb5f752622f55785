//! Nanoseconds per request of this crate's work, for a small request (16 floats) and an image (602 KB).
//!
//! `cargo run --release -p penstock-wire --example cost`

use bytes::Bytes;
use penstock_schema::{DataType, ModelSpec, Outputs, Result, Tensor, TensorSpec};
use penstock_wire::{Frames, RawRequest, ReplyPlan, grpc, json, validate::validate};
use prost::Message;
use smallvec::smallvec;
use std::{hint::black_box, time::Instant};

fn main() -> Result<()> {
    for dims in [vec![16], vec![3, 224, 224]] {
        let case = Case::new(dims);
        println!("{} floats ({} bytes), ns per call:", case.elements, case.elements * 4);
        case.json()?;
        case.binary()?;
        case.grpc()?;
    }
    Ok(())
}

struct Case {
    spec: ModelSpec,
    elements: usize,
    shape: Vec<i64>,
    data: Bytes,
}

impl Case {
    fn new(dims: Vec<i64>) -> Case {
        let elements = dims.iter().product::<i64>() as usize;
        let data: Vec<u8> = (0..elements).flat_map(|index| (index as f32 * 0.37 - 3.0).to_le_bytes()).collect();
        let tensor = |name: &str| TensorSpec {
            name: name.to_owned(),
            datatype: DataType::Fp32,
            dims: dims.clone(),
            optional: false,
        };
        let spec = ModelSpec {
            name: "double".to_owned(),
            version: 1,
            platform: "python".to_owned(),
            max_batch_size: 64,
            inputs: vec![tensor("x")],
            outputs: vec![tensor("y")],
            padding: None,
            on_device: false,
            config_json: Bytes::new(),
            config_proto: Bytes::new(),
        };
        let shape = [1].into_iter().chain(dims).collect();
        Case { spec, elements, shape, data: data.into() }
    }

    fn outputs(&self) -> Outputs {
        let shape = self.shape.iter().copied().collect();
        smallvec![Tensor::new(DataType::Fp32, shape, self.data.clone())]
    }

    fn json(&self) -> Result<()> {
        let (chunks, _) = self.data.as_chunks::<4>();
        let values: Vec<String> = chunks.iter().map(|chunk| f32::from_le_bytes(*chunk).to_string()).collect();
        let body = format!(
            r#"{{"inputs":[{{"name":"x","shape":{:?},"datatype":"FP32","data":[{}]}}]}}"#,
            self.shape,
            values.join(",")
        );
        let body = Bytes::from(body);
        self.measure(
            "JSON",
            || json::decode(&body, None),
            |plan| Ok(json::encode(&self.spec, plan, self.outputs())?.frames),
        )
    }

    fn binary(&self) -> Result<()> {
        let header = format!(
            r#"{{"inputs":[{{"name":"x","shape":{:?},"datatype":"FP32","parameters":{{"binary_data_size":{}}}}}],"outputs":[{{"name":"y","parameters":{{"binary_data":true}}}}]}}"#,
            self.shape,
            self.data.len()
        );
        let body = Bytes::from([header.as_bytes(), &self.data].concat());
        let decode = || json::decode(&body, Some(header.len()));
        self.measure("binary", decode, |plan| Ok(json::encode(&self.spec, plan, self.outputs())?.frames))
    }

    fn grpc(&self) -> Result<()> {
        let input = grpc::pb::model_infer_request::InferInputTensor {
            name: "x".to_owned(),
            datatype: "FP32".to_owned(),
            shape: self.shape.clone(),
            ..Default::default()
        };
        let output =
            grpc::pb::model_infer_request::InferRequestedOutputTensor { name: "y".to_owned(), ..Default::default() };
        let message = grpc::pb::ModelInferRequest {
            model_name: "double".to_owned(),
            inputs: vec![input],
            outputs: vec![output],
            raw_input_contents: vec![self.data.clone()],
            ..Default::default()
        };
        let message = Bytes::from(message.encode_to_vec());
        let decode = || Ok(grpc::decode(&message)?.request);
        self.measure("gRPC", decode, |plan| grpc::encode(&self.spec, plan, self.outputs()))
    }

    fn measure<'a>(
        &self,
        name: &str,
        decode: impl Fn() -> Result<RawRequest<'a>>,
        encode: impl Fn(&ReplyPlan) -> Result<Frames>,
    ) -> Result<()> {
        let decoded = time(&decode)?;
        let both = time(|| validate(&self.spec, decode()?))?;
        let plan = validate(&self.spec, decode()?)?.plan;
        let encoded = time(|| encode(&plan))?;
        println!("  {name:7} decode {decoded:10.0}   decode + validate {both:10.0}   encode {encoded:10.0}");
        Ok(())
    }
}

/// The best of several runs: others share the machine, and their noise only adds.
fn time<T>(work: impl Fn() -> Result<T>) -> Result<f64> {
    const RUNS: usize = 7;
    const RUN_NANOSECONDS: f64 = 3e7;
    let start = Instant::now();
    black_box(work()?);
    let calls = (RUN_NANOSECONDS / start.elapsed().as_nanos().max(1) as f64).clamp(1.0, 1e6) as u32;
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        let start = Instant::now();
        for _ in 0..calls {
            black_box(work()?);
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(calls));
    }
    Ok(best)
}
