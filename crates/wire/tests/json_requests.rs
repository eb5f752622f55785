//! What JSON and binary infer bodies are taken for, and which are refused with which words.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use bytes::Bytes;
use common::{batched, expect_refusal, floats, spec, strings, tensor};
use penstock_schema::Code::{Internal, InvalidArgument, Unsupported};
use penstock_schema::{DataType, limits};
use penstock_wire::{Place, RawOutput, Value, json, validate::validate};
use std::borrow::Cow;

/// An all-JSON body with one input made of `fields`.
fn input(fields: &str) -> String {
    format!(r#"{{"inputs":[{{{fields}}}]}}"#)
}

/// The same with sound name, type and shape before `fields`.
fn typed(datatype: &str, shape: &str, fields: &str) -> String {
    input(&format!(r#""name":"x","datatype":"{datatype}","shape":{shape},{fields}"#))
}

#[test]
fn json_data_becomes_tensor_bytes() {
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("BOOL", "[true,false]", vec![1, 0]),
        ("UINT8", "[0,255]", vec![0, 255]),
        ("INT8", "[-128,127]", vec![0x80, 0x7f]),
        ("UINT16", "[65535,1]", vec![0xff, 0xff, 1, 0]),
        ("INT16", "[-1,1]", vec![0xff, 0xff, 1, 0]),
        ("UINT32", "[4294967295,0]", vec![255, 255, 255, 255, 0, 0, 0, 0]),
        ("INT32", "[-2,2]", [-2i32, 2].iter().flat_map(|value| value.to_le_bytes()).collect()),
        ("UINT64", "[18446744073709551615,1]", [u64::MAX, 1].iter().flat_map(|value| value.to_le_bytes()).collect()),
        (
            "INT64",
            "[-9223372036854775808,9007199254740993]",
            [i64::MIN, (1 << 53) + 1].iter().flat_map(|value| value.to_le_bytes()).collect(),
        ),
        ("FP32", "[1,-0.1]", floats(&[1.0, -0.1])),
        ("FP32", "[[3.5e0],[-7]]", floats(&[3.5, -7.0])),
        ("FP64", "[1e308,-5]", [1e308f64, -5.0].iter().flat_map(|value| value.to_le_bytes()).collect()),
        ("BYTES", r#"["","aé\n"]"#, strings(&[b"", "aé\n".as_bytes()])),
        ("BYTES", r#"[["\ud83d\ude00"],["\u0000"]]"#, strings(&["😀".as_bytes(), b"\0"])),
    ];
    for (datatype, data, expected) in cases {
        let fields = [
            format!(r#""name":"x","shape":[2],"datatype":"{datatype}","data":{data}"#),
            format!(r#""data":{data},"datatype":"{datatype}","name":"x","shape":[2]"#),
            format!(
                r#""more":{{"a":[null,1.5,{{}}]}},"datatype":"{datatype}","data" : {data} ,"shape":[2],"name":"x""#
            ),
        ];
        for fields in fields {
            let body = Bytes::from(input(&fields));
            let request = json::decode(&body, None).unwrap();
            assert_eq!(request.inputs.len(), 1);
            assert_eq!(request.inputs[0].datatype.name(), datatype);
            assert_eq!(request.inputs[0].data, expected, "{fields}");
        }
    }
}

#[test]
fn names_borrow_and_binary_tensors_are_slices() {
    let header = r#"{"id":"a","inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","parameters":{"binary_data_size":4}},
        {"name":"e","shape":[0],"datatype":"INT8","parameters":{"binary_data_size":0}},
        {"name":"z","shape":[2],"datatype":"UINT8","parameters":{"binary_data_size":2}}]}"#;
    let body = Bytes::from([header.as_bytes(), b"abcdef"].concat());
    let request = json::decode(&body, Some(header.len())).unwrap();
    assert!(matches!(request.id, Cow::Borrowed("a")));
    assert!(matches!(request.inputs[0].name, Cow::Borrowed("x")));
    assert_eq!(request.inputs[0].data.as_ptr(), body[header.len()..].as_ptr());
    assert_eq!(request.inputs[1].data, "");
    assert_eq!(request.inputs[2].data.as_ptr(), body[header.len() + 4..].as_ptr());
    assert_eq!(request.inputs[2].data, "ef");
}

#[test]
fn a_header_that_spans_the_body_is_plain_json() {
    let body = Bytes::from(typed("FP32", "[1]", r#""data":[1]"#));
    assert_eq!(json::decode(&body, Some(body.len())), json::decode(&body, None));
}

#[test]
fn parameters_are_read_by_name() {
    let body = Bytes::from(
        r#"{"inputs":[],"outputs":[{"name":"a","parameters":{"binary_data":true,"classification":0}},{"name":"b","parameters":{"binary_data":false,"note":1}},{"name":"c"}],
        "parameters":{"priority":4294967295,"timeout":5000,"binary_data_output":true,"sequence_id":"s","sequence_start":true,"sequence_end":false,
        "triton_enable_empty_final_response":true,"text":"v","flag":false,"int":-1,"big":18446744073709551615,"half":0.5}}"#,
    );
    let request = json::decode(&body, None).unwrap();
    let wanted: Vec<RawOutput<'_>> = [("a", Some(true)), ("b", Some(false)), ("c", None)]
        .map(|(name, binary)| RawOutput { name: name.into(), binary, place: None })
        .into();
    assert_eq!(request.outputs.as_slice(), wanted);
    let parameters = request.parameters;
    assert_eq!((parameters.priority, parameters.timeout_us), (u32::MAX, 5000));
    assert!(parameters.binary_data_output && parameters.empty_final_response);
    let custom = [
        ("text", Value::String("v".into())),
        ("flag", Value::Bool(false)),
        ("int", Value::Int(-1)),
        ("big", Value::Uint(u64::MAX)),
        ("half", Value::Double(0.5)),
    ];
    assert_eq!(parameters.custom, custom.map(|(name, value)| (Cow::Borrowed(name), value)));
}

#[test]
fn json_is_refused_where_it_could_mean_two_things() {
    let good = r#""name":"x","datatype":"FP32","shape":[1],"data":[1]"#;
    let deep = |open: &str, close: &str, count| format!("{}{}", open.repeat(count), close.repeat(count));
    let around = |value: String| format!(r#"{{"unknown":{value},"inputs":[]}}"#);
    let cases: Vec<(&str, String, &[&str])> = vec![
        ("empty", String::new(), &["JSON"]),
        ("blank", "  ".into(), &["JSON"]),
        ("array at the top", "[]".into(), &["JSON", "object with 'inputs'"]),
        ("string at the top", "\"a\"".into(), &["JSON"]),
        ("cut", r#"{"inputs":["#.into(), &["JSON", "EOF"]),
        ("more behind it", r#"{"inputs":[]} {}"#.into(), &["JSON", "trailing"]),
        ("no inputs", "{}".into(), &["'inputs'"]),
        ("inputs is an object", r#"{"inputs":{}}"#.into(), &["'inputs': an array"]),
        ("inputs is null", r#"{"inputs":null}"#.into(), &["'inputs': an array"]),
        ("an input is a number", r#"{"inputs":[1]}"#.into(), &["a tensor"]),
        ("250,000 open arrays", "[".repeat(250_000), &["JSON"]),
        ("250,000 open arrays inside", format!(r#"{{"a":{}"#, "[".repeat(250_000)), &["nested"]),
        (
            "250,000 open arrays as data",
            typed("FP32", "[1]", &format!(r#""data":{}"#, "[".repeat(250_000))),
            &["nested"],
        ),
        ("250,000 open arrays as early data", input(&format!(r#""data":{}"#, "[".repeat(250_000))), &["JSON"]),
        ("120 arrays", around(deep("[", "]", 120)), &["nested", "64"]),
        ("120 objects", around(deep(r#"{"a":"#, "}", 120).replace(":}", ":0}")), &["nested", "64"]),
        ("120 arrays as data", typed("FP32", "[0]", &format!(r#""data":{}"#, deep("[", "]", 120))), &["nested", "64"]),
        (
            "120 arrays as early data",
            input(&format!(r#""data":{},"name":"x","shape":[0],"datatype":"FP32""#, deep("[", "]", 120))),
            &["nested", "64"],
        ),
        ("doubled id", r#"{"id":"a","id":"a","inputs":[]}"#.into(), &["'id'", "twice"]),
        ("doubled inputs", r#"{"inputs":[],"inputs":[]}"#.into(), &["'inputs'", "twice"]),
        ("doubled by escape", r#"{"inputs":[],"input\u0073":[]}"#.into(), &["'inputs'", "twice"]),
        ("doubled unknown", r#"{"a":1,"a":2,"inputs":[]}"#.into(), &["'a'", "twice"]),
        (
            "doubled far apart",
            around(format!("{{{}\"k3\":0}}", (0..40).map(|index| format!("\"k{index}\":0,")).collect::<String>())),
            &["'k3'", "twice"],
        ),
        ("doubled inside unknown", around(r#"[{"a":1,"a":2}]"#.into()), &["'a'", "twice"]),
        ("doubled data", typed("FP32", "[1]", r#""data":[1],"data":[1]"#), &["'data'", "twice"]),
        ("doubled name", input(&format!(r#"{good},"name":"x""#)), &["'name'", "twice"]),
        (
            "doubled parameter",
            r#"{"inputs":[],"parameters":{"timeout":1,"timeout":2}}"#.into(),
            &["'timeout'", "twice"],
        ),
        ("doubled output name", r#"{"inputs":[],"outputs":[{"name":"y","name":"y"}]}"#.into(), &["'name'", "twice"]),
        ("NaN", typed("FP32", "[1]", r#""data":[NaN]"#), &["JSON"]),
        ("Infinity", typed("FP32", "[1]", r#""data":[-Infinity]"#), &["JSON"]),
        ("1e999", typed("FP64", "[1]", r#""data":[1e999]"#), &["JSON", "out of range"]),
        ("1e999 early", input(r#""data":[1e999],"name":"x","shape":[1],"datatype":"FP64""#), &["JSON", "out of range"]),
        ("1e999 unknown", around("1e999".into()), &["JSON", "out of range"]),
        ("1e39 as FP32", typed("FP32", "[1]", r#""data":[1e39]"#), &["'x'", "fit FP32"]),
        ("300 as UINT8", typed("UINT8", "[1]", r#""data":[300]"#), &["'x'", "fit UINT8", "300"]),
        ("-1 as UINT64", typed("UINT64", "[1]", r#""data":[-1]"#), &["'x'", "fit UINT64", "-1"]),
        ("2^63 as INT64", typed("INT64", "[1]", r#""data":[9223372036854775808]"#), &["fit INT64"]),
        (
            "2^64 as UINT64",
            typed("UINT64", "[1]", r#""data":[18446744073709551616]"#),
            &["fit UINT64", "about 1.8446744073709552e19"],
        ),
        ("1.0 as INT64", typed("INT64", "[1]", r#""data":[1.0]"#), &["'x'", "fit INT64", "got 1.0"]),
        ("1.5 as INT64", typed("INT64", "[1]", r#""data":[1.5]"#), &["'x'", "fit INT64", "1.5"]),
        ("true as FP32", typed("FP32", "[1]", r#""data":[true]"#), &["fit FP32", "true"]),
        ("1 as BOOL", typed("BOOL", "[1]", r#""data":[1]"#), &["fit BOOL", "1"]),
        ("text as FP32", typed("FP32", "[1]", r#""data":["1\n"]"#), &["fit FP32", r"'1\n'"]),
        ("number as BYTES", typed("BYTES", "[1]", r#""data":[1]"#), &["fit BYTES"]),
        ("null element", typed("FP32", "[1]", r#""data":[null]"#), &["JSON", "null"]),
        ("object as data", typed("FP32", "[1]", r#""data":{}"#), &["JSON", "FP32 elements"]),
        ("lone surrogate", typed("BYTES", "[1]", r#""data":["\ud800"]"#), &["JSON"]),
        ("FP16 as JSON", typed("FP16", "[1]", r#""data":[1]"#), &["FP16", "binary"]),
        ("BF16 as JSON", typed("BF16", "[1]", r#""data":[1]"#), &["BF16", "binary"]),
        ("FP99", typed("FP99", "[1]", r#""data":[1]"#), &["'x'", "'FP99'"]),
        ("small letters", typed("fp32", "[1]", r#""data":[1]"#), &["'fp32'"]),
        ("negative size", typed("FP32", "[2,-5]", r#""data":[1]"#), &["'x'", "shape", "-5"]),
        ("size 2^63", typed("FP32", "[9223372036854775808]", r#""data":[1]"#), &["shape", "9223372036854775808"]),
        ("size 1.0", typed("FP32", "[1.0]", r#""data":[1]"#), &["shape", "got 1.0"]),
        ("size as text", typed("FP32", r#"["1"]"#, r#""data":[1]"#), &["shape", "'1'"]),
        ("shape is a number", typed("FP32", "1", r#""data":[1]"#), &["JSON", "shape"]),
        ("10,000 dims", typed("FP32", &format!("[{}1]", "1,".repeat(9_999)), r#""data":[1]"#), &["'x'", "dimensions"]),
        ("no name", input(r#""datatype":"FP32","shape":[1],"data":[1]"#), &["'name'"]),
        ("no datatype", input(r#""name":"x","shape":[1],"data":[1]"#), &["'x'", "'datatype'"]),
        ("no shape", input(r#""name":"x","datatype":"FP32","data":[1]"#), &["'x'", "'shape'"]),
        ("no data", input(r#""name":"x","datatype":"FP32","shape":[1]"#), &["'x'", "'data'"]),
        (
            "1,025 inputs",
            format!(r#"{{"inputs":[{}{{{good}}}]}}"#, format!("{{{good}}},").repeat(1_024)),
            &["inputs", "1024"],
        ),
        (
            "100,000 outputs",
            format!(r#"{{"inputs":[],"outputs":[{}{{"name":"y"}}]}}"#, r#"{"name":"y"},"#.repeat(99_999)),
            &["outputs", "1024"],
        ),
        (
            "1,025 parameters",
            format!(
                r#"{{"inputs":[],"parameters":{{{}"z":0}}}}"#,
                (0..1_024).map(|index| format!("\"p{index}\":0,")).collect::<String>()
            ),
            &["parameters", "1024"],
        ),
        ("id with a line break", r#"{"id":"a\r\nb","inputs":[]}"#.into(), &["id", "control"]),
        ("id of 1 MB", format!(r#"{{"id":"{}","inputs":[]}}"#, "a".repeat(1_000_000)), &["id", "1024", "1000000"]),
        ("id is a number", r#"{"id":1,"inputs":[]}"#.into(), &["JSON", "a string"]),
        ("output without name", r#"{"inputs":[],"outputs":[{}]}"#.into(), &["output", "'name'"]),
        (
            "nested parameter",
            r#"{"inputs":[],"parameters":{"a":[1]}}"#.into(),
            &["JSON", "a boolean, a number or a string"],
        ),
        ("negative timeout", r#"{"inputs":[],"parameters":{"timeout":-1}}"#.into(), &["'timeout'", "-1"]),
        ("fractional timeout", r#"{"inputs":[],"parameters":{"timeout":0.5}}"#.into(), &["'timeout'", "0.5"]),
        ("timeout as text", r#"{"inputs":[],"parameters":{"timeout":"5"}}"#.into(), &["'timeout'", "'5'"]),
        ("negative priority", r#"{"inputs":[],"parameters":{"priority":-2}}"#.into(), &["'priority'", "-2"]),
        ("fractional priority", r#"{"inputs":[],"parameters":{"priority":1.5}}"#.into(), &["'priority'", "1.5"]),
        ("huge priority", r#"{"inputs":[],"parameters":{"priority":4294967296}}"#.into(), &["'priority'"]),
        ("headers", r#"{"inputs":[],"parameters":{"headers":"a"}}"#.into(), &["'headers'", "reserved"]),
        ("triton_x", r#"{"inputs":[],"parameters":{"triton_x":1}}"#.into(), &["'triton_x'", "reserved"]),
        (
            "empty final as number",
            r#"{"inputs":[],"parameters":{"triton_enable_empty_final_response":1}}"#.into(),
            &["true or false"],
        ),
        ("sequence id as boolean", r#"{"inputs":[],"parameters":{"sequence_id":true}}"#.into(), &["'sequence_id'"]),
        (
            "binary_data as text",
            r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"binary_data":"yes"}}]}"#.into(),
            &["'binary_data'"],
        ),
        (
            "a name of 10,000 characters",
            r#"{"inputs":[{"name":"NAME"}]}"#.replace("NAME", &r"\u0007".repeat(10_000)),
            &["input", "..."],
        ),
        (
            "a shape of 1 MB",
            typed("FP32", &format!("\"{}\"", "a".repeat(1_000_000)), r#""data":[1]"#),
            &["JSON", "shape", "line 1"],
        ),
    ];
    for (case, text, pieces) in cases {
        expect_refusal(case, json::decode(&Bytes::from(text), None), InvalidArgument, pieces);
    }
    expect_refusal(
        "bad UTF-8",
        json::decode(&Bytes::from_static(b"{\"a\":\"\xff\"}"), None),
        InvalidArgument,
        &["UTF-8", "byte 6"],
    );
}

#[test]
fn nesting_is_allowed_up_to_the_limit() {
    let most = limits::JSON_DEPTH as usize;
    let unknown = |count: usize| format!(r#"{{"u":{}{},"inputs":[]}}"#, "[".repeat(count), "]".repeat(count));
    assert!(json::decode(&unknown(most - 1).into(), None).is_ok());
    assert!(json::decode(&unknown(most).into(), None).is_err());
    let data = |count: usize| typed("FP32", "[1]", &format!(r#""data":{}1{}"#, "[".repeat(count), "]".repeat(count)));
    assert!(json::decode(&data(most - 3).into(), None).is_ok());
    assert!(json::decode(&data(most - 2).into(), None).is_err());
}

#[test]
fn binary_sizes_must_add_up() {
    let one = |size: &str| typed("UINT8", "[4]", &format!(r#""parameters":{{"binary_data_size":{size}}}"#));
    let with_data = typed("UINT8", "[4]", r#""data":[1,2,3,4],"parameters":{"binary_data_size":4}"#);
    let cases: Vec<(&str, String, &[u8], &[&str])> = vec![
        ("too much follows", one("4"), b"12345", &["4 bytes", "5 follow"]),
        ("too little follows", one("4"), b"123", &["'x'", "4 bytes", "3 are left"]),
        ("negative", one("-1"), b"1234", &["'binary_data_size'", "-1"]),
        ("2^63", one("9223372036854775808"), b"1234", &["'x'", "9223372036854775808"]),
        ("2^64-1", one("18446744073709551615"), b"1234", &["'x'", "18446744073709551615"]),
        ("fraction", one("4.0"), b"1234", &["'binary_data_size'"]),
        ("text", one("\"4\""), b"1234", &["'binary_data_size'"]),
        ("both", with_data, b"1234", &["'x'", "both"]),
        ("none announced", typed("UINT8", "[4]", r#""data":[1,2,3,4]"#), b"1", &["0 bytes", "1 follow"]),
    ];
    for (case, header, tail, pieces) in cases {
        let body = Bytes::from([header.as_bytes(), tail].concat());
        expect_refusal(case, json::decode(&body, Some(header.len())), InvalidArgument, pieces);
    }
    let body = Bytes::from(one("4"));
    expect_refusal("no header length", json::decode(&body, None), InvalidArgument, &["0 are left"]);
    expect_refusal(
        "length over the body",
        json::decode(&body, Some(99_999_999_999)),
        InvalidArgument,
        &["99999999999"],
    );
    expect_refusal("length cuts the JSON", json::decode(&body, Some(body.len() - 1)), InvalidArgument, &["JSON"]);
    expect_refusal("length 0", json::decode(&body, Some(0)), InvalidArgument, &["JSON"]);
    let wide = limits::JSON_HEADER_BYTES as usize + 1;
    let body = Bytes::from(" ".repeat(wide + 1));
    expect_refusal("wide header", json::decode(&body, Some(wide)), InvalidArgument, &["JSON header"]);
}

#[test]
fn features_that_are_not_there_are_unsupported_rather_than_wrong() {
    let text = r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":3}}]}"#;
    expect_refusal(text, json::decode(&Bytes::from(text), None), Unsupported, &["classification"]);
}

/// An input in shared memory with these parameters and whatever else it says.
fn elsewhere(parameters: &str, more: &str) -> Bytes {
    let input = format!(r#"{{"name":"x","datatype":"FP32","shape":[4],"parameters":{{{parameters}}}{more}}}"#);
    format!(r#"{{"inputs":[{input}]}}"#).into()
}

#[test]
fn tensors_in_shared_memory_are_named_and_hold_nothing() {
    let text = r#"{"inputs":[
        {"name":"x","datatype":"FP32","shape":[4],
         "parameters":{"shared_memory_region":"r","shared_memory_byte_size":16,"shared_memory_offset":8}},
        {"name":"b","datatype":"UINT8","shape":[2],"parameters":{"binary_data_size":2}},
        {"name":"y","parameters":{"shared_memory_byte_size":0,"shared_memory_region":"s"},"shape":[4],"datatype":"FP32"}
    ],"outputs":[{"name":"y","parameters":{"shared_memory_region":"o","shared_memory_byte_size":64}},{"name":"z"}]}"#;
    let body = Bytes::from([text.as_bytes(), b"ab"].concat());
    let request = json::decode(&body, Some(text.len())).unwrap();
    let place =
        |region: &str, offset, byte_size| Some(Box::new(Place { region: region.to_owned(), offset, byte_size }));
    let [first, second, third] = request.inputs.as_slice() else { panic!("three inputs") };
    assert_eq!((&first.place, first.data.len()), (&place("r", 8, 16), 0));
    assert_eq!((&second.place, &second.data[..]), (&None, &b"ab"[..]));
    assert_eq!(third.place, place("s", 0, 0));
    assert_eq!(request.outputs[0].place, place("o", 0, 64));
    assert_eq!(request.outputs[1].place, None);
}

#[test]
fn places_that_are_none_are_refused() {
    let cases = [
        (elsewhere(r#""shared_memory_region":"r""#, ""), &["'x'", "shared_memory_byte_size"][..]),
        (elsewhere(r#""shared_memory_byte_size":16"#, ""), &["'x'", "shared_memory_region"]),
        (elsewhere(r#""shared_memory_offset":16"#, ""), &["'x'", "shared_memory_region"]),
        (elsewhere(r#""shared_memory_region":5,"shared_memory_byte_size":16"#, ""), &["shared_memory_region"]),
        (elsewhere(r#""shared_memory_region":"r","shared_memory_byte_size":-1"#, ""), &["shared_memory_byte_size"]),
        (elsewhere(r#""shared_memory_region":"r","shared_memory_byte_size":1.5"#, ""), &["shared_memory_byte_size"]),
        (
            elsewhere(
                r#""shared_memory_region":"r","shared_memory_byte_size":2,"shared_memory_offset":18446744073709551615"#,
                "",
            ),
            &["'x'", "2^64"],
        ),
        (
            elsewhere(r#""shared_memory_region":"r","shared_memory_byte_size":16"#, r#","data":[1,2,3,4]"#),
            &["'x'", "both"],
        ),
        (
            elsewhere(r#""shared_memory_region":"r","shared_memory_byte_size":16,"binary_data_size":0"#, ""),
            &["'x'", "both"],
        ),
    ];
    for (body, pieces) in &cases {
        expect_refusal(&String::from_utf8_lossy(body), json::decode(body, None), InvalidArgument, pieces);
    }
    let spec = spec(0, vec![tensor("x", DataType::Fp32, &[4])], vec![]);
    let unread = elsewhere(r#""shared_memory_region":"r","shared_memory_byte_size":16"#, "");
    let validated = json::decode(&unread, None).and_then(|raw| validate(&spec, raw));
    expect_refusal("never read", validated, Internal, &["'x'", "not read"]);
}

#[test]
fn raw_bodies_are_the_single_input() {
    let one = |max_batch_size, datatype, dims: &[i64]| spec(max_batch_size, vec![tensor("x", datatype, dims)], vec![]);
    let body = Bytes::from(floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let cases: [(u32, DataType, &[i64], &[i64]); 4] = [
        (8, DataType::Fp32, &[6], &[1, 6]),
        (8, DataType::Fp32, &[2, -1], &[1, 2, 3]),
        (0, DataType::Fp32, &[-1], &[6]),
        (0, DataType::Uint8, &[-1, 12], &[2, 12]),
    ];
    for (max_batch_size, datatype, dims, shape) in cases {
        let spec = one(max_batch_size, datatype, dims);
        let request = validate(&spec, json::decode_raw(&spec, &body).unwrap()).unwrap();
        let input = request.inputs[0].as_ref().unwrap();
        assert_eq!(input.shape.as_slice(), shape);
        assert_eq!(input.data.as_ptr(), body.as_ptr());
    }
    let spec = one(8, DataType::Bytes, &[1]);
    let request = validate(&spec, json::decode_raw(&spec, &Bytes::from_static(b"text")).unwrap()).unwrap();
    assert_eq!(request.inputs[0].as_ref().unwrap().data, strings(&[b"text"]));

    let raw = |spec| json::decode_raw(&spec, &body).and_then(|raw| validate(&spec, raw));
    expect_refusal("two inputs", raw(batched()), InvalidArgument, &["one input", "2"]);
    expect_refusal("two unknown sizes", raw(one(8, DataType::Fp32, &[-1, -1])), InvalidArgument, &["'x'", "unknown"]);
    expect_refusal("a remainder", raw(one(8, DataType::Fp32, &[-1, 5])), InvalidArgument, &["'x'", "20 bytes", "24"]);
    expect_refusal("wrong size", raw(one(8, DataType::Fp32, &[5])), InvalidArgument, &["'x'", "20 bytes", "24"]);
    expect_refusal("size zero", raw(one(0, DataType::Fp32, &[0, -1])), InvalidArgument, &["'x'", "0 bytes", "24"]);
    expect_refusal("two strings", raw(one(8, DataType::Bytes, &[2])), InvalidArgument, &["'x'", "one element"]);
    let every = json::decode_raw(&one(8, DataType::Fp32, &[6]), &body).unwrap();
    assert!(every.outputs.is_empty() && every.parameters.binary_data_output);
}

/// A request can't make the server hold more than a small multiple of what it sent, whatever it declares.
#[test]
fn memory_follows_bytes_not_declarations() {
    let body = Bytes::from(typed("FP64", "[1000000000000]", r#""data":[1,2]"#));
    let request = json::decode(&body, None).unwrap();
    let data: Vec<u8> = request.inputs[0].data.clone().into();
    assert_eq!(data.len(), 16);
    assert!(data.capacity() <= body.len() * 8, "{}", data.capacity());
}
