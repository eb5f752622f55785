//! Which requests fit a model, and what is said about those that don't.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use bytes::Bytes;
use common::{batched, expect_refusal, floats, spec, strings, tensor};
use penstock_schema::Code::InvalidArgument;
use penstock_schema::{DataType, ModelSpec, Shape};
use penstock_wire::{Parameters, RawOutput, RawRequest, RawTensor, Validated, WantedOutput, validate::validate};
use smallvec::SmallVec;

fn sent<'a>(name: &'a str, datatype: DataType, shape: &[i64], data: Vec<u8>) -> RawTensor<'a> {
    RawTensor {
        name: name.into(),
        datatype,
        shape: Shape::from_slice(shape),
        data: Bytes::from(data),
        place: None,
        device: None,
    }
}

fn x(rows: i64) -> RawTensor<'static> {
    sent("x", DataType::Fp32, &[rows, 4], floats(&vec![0.5; 4 * rows as usize]))
}

fn n(rows: i64) -> RawTensor<'static> {
    sent("n", DataType::Int64, &[rows], vec![7; 8 * rows as usize])
}

fn check(spec: &ModelSpec, inputs: Vec<RawTensor<'_>>, outputs: &[&str]) -> penstock_schema::Result<Validated> {
    let outputs = outputs.iter().map(|&name| RawOutput { name: name.into(), binary: None, place: None }).collect();
    validate(spec, RawRequest { inputs: SmallVec::from_vec(inputs), outputs, ..RawRequest::default() })
}

#[test]
fn inputs_come_out_in_the_order_of_the_model() {
    let request = check(&batched(), vec![n(3), x(3)], &[]).unwrap();
    assert_eq!(request.rows, 3);
    let types: Vec<_> = request.inputs.iter().map(|input| input.as_ref().unwrap().datatype).collect();
    assert_eq!(types, [DataType::Fp32, DataType::Int64]);
}

#[test]
fn optional_inputs_may_be_absent() {
    let request = check(&batched(), vec![x(8)], &[]).unwrap();
    assert_eq!(request.rows, 8);
    assert!(request.inputs[1].is_none());
    let mut all_optional = batched();
    all_optional.inputs[0].optional = true;
    assert_eq!(check(&all_optional, vec![], &[]).unwrap().rows, 1);
}

#[test]
fn outputs_default_to_all_and_keep_the_order_asked() {
    let wanted = |index| WantedOutput { index, binary: false, place: None };
    assert_eq!(check(&batched(), vec![x(1)], &[]).unwrap().plan.outputs.as_slice(), [wanted(0), wanted(1)]);
    assert_eq!(check(&batched(), vec![x(1)], &["s", "y"]).unwrap().plan.outputs.as_slice(), [wanted(1), wanted(0)]);
    assert_eq!(check(&batched(), vec![x(1)], &["s"]).unwrap().plan.outputs.as_slice(), [wanted(1)]);
}

#[test]
fn the_plan_carries_id_binary_priority_and_timeout() {
    let raw = RawRequest {
        id: "a".into(),
        inputs: SmallVec::from_vec(vec![x(1)]),
        outputs: ["y", "s"]
            .map(|name| RawOutput { name: name.into(), binary: (name == "s").then_some(false), place: None })
            .into(),
        parameters: Parameters { priority: 2, timeout_us: 10, binary_data_output: true, ..Parameters::default() },
    };
    let request = validate(&batched(), raw).unwrap();
    assert_eq!((request.priority, request.timeout_us, request.plan.id.as_str()), (2, Some(10), "a"));
    let binary: Vec<bool> = request.plan.outputs.iter().map(|output| output.binary).collect();
    assert_eq!(binary, [true, false]);
    assert_eq!(check(&batched(), vec![x(1)], &[]).unwrap().timeout_us, None);
}

#[test]
fn models_without_a_batch_dimension_take_their_shape_as_it_is() {
    let free = spec(0, vec![tensor("x", DataType::Uint8, &[-1, 2])], vec![]);
    for rows in [0, 1, 300] {
        let request =
            check(&free, vec![sent("x", DataType::Uint8, &[rows, 2], vec![0; 2 * rows as usize])], &[]).unwrap();
        assert_eq!(request.rows, 1);
    }
    let scalar = spec(0, vec![tensor("x", DataType::Fp64, &[])], vec![]);
    assert_eq!(check(&scalar, vec![sent("x", DataType::Fp64, &[], vec![0; 8])], &[]).unwrap().rows, 1);
}

#[test]
fn requests_that_do_not_fit_are_refused_by_name() {
    let fp32 = |shape: &[i64], bytes| sent("x", DataType::Fp32, shape, vec![0; bytes]);
    type Case<'a> = (&'a str, Vec<RawTensor<'a>>, &'a [&'a str], &'a [&'a str]);
    let cases: Vec<Case<'_>> = vec![
        ("nothing sent", vec![], &[], &["'x'", "FP32 of shape [-1, 4]", "'m'"]),
        ("only the optional one", vec![n(1)], &[], &["'x'", "got none"]),
        (
            "unknown input",
            vec![x(1), sent("q\n", DataType::Fp32, &[1], vec![0; 4])],
            &[],
            &[r"'q\n'", "'m'", "'x', 'n'"],
        ),
        ("doubled input", vec![x(1), x(1)], &[], &["'x'", "twice"]),
        ("wrong type", vec![sent("x", DataType::Fp64, &[1, 4], vec![0; 32])], &[], &["'x'", "FP32", "FP64"]),
        ("no batch dimension", vec![fp32(&[4], 16)], &[], &["'x'", "[-1, 4]", "[4]", "batch"]),
        ("too many dimensions", vec![fp32(&[1, 1, 4], 16)], &[], &["'x'", "[-1, 4]", "[1, 1, 4]"]),
        ("wrong size", vec![fp32(&[1, 5], 20)], &[], &["'x'", "[-1, 4]", "[1, 5]"]),
        ("no rows", vec![fp32(&[0, 4], 0)], &[], &["'x'", "1 to 8 rows", "0"]),
        ("too many rows", vec![x(9)], &[], &["'x'", "1 to 8 rows", "9"]),
        ("2^40 rows", vec![fp32(&[1 << 40, 4], 16)], &[], &["'x'", "1 to 8 rows"]),
        ("rows differ", vec![x(2), n(3)], &[], &["'n'", "2 rows", "'x'", "3"]),
        ("too few bytes", vec![fp32(&[1, 4], 15)], &[], &["'x'", "4 elements", "16 bytes", "15"]),
        ("too many bytes", vec![fp32(&[1, 4], 17)], &[], &["'x'", "16 bytes", "17"]),
        ("unknown output", vec![x(1)], &["q"], &["output 'q'", "'y', 's'"]),
        ("doubled output", vec![x(1)], &["y", "s", "y"], &["output 'y'", "twice"]),
    ];
    for (case, inputs, outputs, pieces) in cases {
        expect_refusal(case, check(&batched(), inputs, outputs), InvalidArgument, pieces);
    }
}

#[test]
fn shapes_are_multiplied_without_overflow() {
    let free = |dims| spec(0, vec![tensor("x", DataType::Fp32, dims)], vec![]);
    let cases: [(&[i64], &[i64], usize, &str); 5] = [
        (&[-1, -1], &[1 << 4, (1 << 60) + 2], 128, "memory"),
        (&[-1, -1], &[i64::MAX, i64::MAX], 4, "memory"),
        (&[-1], &[1 << 62], 0, "memory"),
        (&[-1, -1, -1], &[0, i64::MAX, i64::MAX], 0, "memory"),
        (&[-1, -1], &[0, 3], 4, "0 elements"),
    ];
    for (dims, shape, bytes, piece) in cases {
        let tensor = sent("x", DataType::Fp32, shape, vec![0; bytes]);
        expect_refusal(&format!("{shape:?}"), check(&free(dims), vec![tensor], &[]), InvalidArgument, &["'x'", piece]);
    }
}

#[test]
fn bytes_elements_must_fill_their_data_exactly() {
    let model = spec(0, vec![tensor("x", DataType::Bytes, &[-1])], vec![]);
    let check_bytes = |count: i64, data: Vec<u8>| check(&model, vec![sent("x", DataType::Bytes, &[count], data)], &[]);
    check_bytes(0, vec![]).unwrap();
    check_bytes(3, strings(&[b"", b"abc", b""])).unwrap();
    let two = strings(&[b"ab", b"c"]);
    let cases: Vec<(&str, i64, Vec<u8>, &[&str])> = vec![
        ("one too many", 1, two.clone(), &["1 BYTES elements", "got 2"]),
        ("one too few", 3, two.clone(), &["3 BYTES elements", "got 2"]),
        ("prefix past the end", 1, [&[200, 0, 0, 0][..], b"abc"].concat(), &["element 0", "200 bytes", "3 are left"]),
        ("prefix of 4 GiB", 1, vec![255; 4], &["element 0", "4294967295"]),
        ("cut prefix", 2, two[..8].to_vec(), &["element 1", "byte 6"]),
        ("bytes but no elements", 0, two.clone(), &["0 BYTES elements", "got 2"]),
        ("2^62 elements", 1 << 62, two, &["got 2"]),
    ];
    for (case, count, data, pieces) in cases {
        expect_refusal(case, check_bytes(count, data), InvalidArgument, pieces);
    }
}

#[test]
fn half_precision_outputs_are_refused_as_json_before_the_model_runs() {
    for datatype in [DataType::Fp16, DataType::Bf16] {
        let model = spec(0, vec![], vec![tensor("h", datatype, &[1])]);
        expect_refusal("JSON", check(&model, vec![], &[]), InvalidArgument, &["'h'", datatype.name(), "binary_data"]);
        let parameters = Parameters { binary_data_output: true, ..Parameters::default() };
        assert!(validate(&model, RawRequest { parameters, ..RawRequest::default() }).is_ok());
    }
}
