//! A prepared request: its bytes, and where the marks of a sequence go.

use crate::Protocol;
use crate::connection::Common;
use crate::http1;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use penstock_wire::grpc::{PREFIX_BYTES, Prefix, prefix};
use prost::encoding::encode_varint;

const HEADER_LENGTH: &str = "inference-header-content-length";

/// One input set, as it goes over the wire.
#[derive(Clone, Debug)]
pub struct Item {
    /// The JSON part and the binary part, or a protobuf message without its prefix.
    body: Bytes,
    /// Bytes of the JSON part where a binary one follows.
    json_bytes: Option<usize>,
    /// What has to be the end of every answer: the raw outputs, one behind the other.
    pub(crate) expected: Option<Bytes>,
}

/// How requests are put together to sequences.
#[derive(Clone, Copy, Debug)]
pub struct SequencePlan {
    /// Requests of each.
    pub length: u64,
    /// The first sequence's number; the others count on.
    pub first: u64,
}

/// Where in its sequence a request stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    pub(crate) sequence: u64,
    pub(crate) start: bool,
    pub(crate) end: bool,
}

impl Item {
    pub fn new(body: Bytes, json_bytes: Option<usize>, expected: Option<Bytes>) -> Item {
        Item { body, json_bytes, expected }
    }

    /// The body to send, with the headers that belong to it.
    pub(crate) fn prepared(&self, common: &Common, mark: Option<Mark>) -> Prepared {
        let mut headers = common.headers.clone();
        let body = match (common.protocol, mark) {
            (Protocol::Http, None) => {
                self.announce(&mut headers, self.json_bytes);
                self.body.clone()
            }
            (Protocol::Http, Some(mark)) => {
                let text = mark.json();
                self.announce(&mut headers, self.json_bytes.map(|bytes| bytes + text.len()));
                let mut marked = BytesMut::with_capacity(self.body.len() + text.len());
                // Every request begins with `{` and has members behind it.
                marked.put_slice(&self.body[..1]);
                marked.put_slice(text.as_bytes());
                marked.put_slice(&self.body[1..]);
                marked.freeze()
            }
            (_, mark) => framed(&self.body, mark),
        };
        let head = match common.protocol {
            Protocol::Http => http1::head(common, &headers, body.len()),
            Protocol::Grpc | Protocol::GrpcStream => Bytes::new(),
        };
        Prepared { head, body, headers, expected: self.expected.clone() }
    }

    fn announce(&self, headers: &mut HeaderMap, json_bytes: Option<usize>) {
        if let Some(bytes) = json_bytes {
            headers.insert(HEADER_LENGTH, HeaderValue::from(bytes));
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        }
    }
}

/// Ready to be sent, again and again.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    /// Over HTTP/1.1, in bytes.
    pub(crate) head: Bytes,
    pub(crate) body: Bytes,
    /// Over HTTP/2.
    pub(crate) headers: HeaderMap,
    pub(crate) expected: Option<Bytes>,
}

impl Mark {
    fn json(&self) -> String {
        let Mark { sequence, start, end } = self;
        format!(r#""parameters":{{"sequence_id":{sequence},"sequence_start":{start},"sequence_end":{end}}},"#)
    }

    /// Entries of `ModelInferRequest.parameters`: a map's entries may stand anywhere in a message.
    fn protobuf(&self) -> BytesMut {
        let mut found = BytesMut::new();
        put_entry(&mut found, b"sequence_id", 2, self.sequence);
        put_entry(&mut found, b"sequence_start", 1, u64::from(self.start));
        put_entry(&mut found, b"sequence_end", 1, u64::from(self.end));
        found
    }
}

/// Field 4 of the request, `{1: name, 2: InferParameter {field: value}}`; `int64_param` is field 2, `bool_param` 1.
fn put_entry(into: &mut BytesMut, name: &[u8], field: u8, value: u64) {
    let mut parameter = BytesMut::new();
    parameter.put_u8(field << 3);
    encode_varint(value, &mut parameter);
    let mut entry = BytesMut::new();
    put_bytes(&mut entry, 1, name);
    put_bytes(&mut entry, 2, &parameter);
    put_bytes(into, 4, &entry);
}

fn put_bytes(into: &mut BytesMut, field: u8, bytes: &[u8]) {
    into.put_u8(field << 3 | 2);
    encode_varint(bytes.len() as u64, into);
    into.put_slice(bytes);
}

fn framed(message: &[u8], mark: Option<Mark>) -> Bytes {
    let marks = mark.map(|mark| mark.protobuf()).unwrap_or_default();
    let length = message.len() + marks.len();
    let mut found = BytesMut::with_capacity(PREFIX_BYTES + length);
    // Bodies beyond 4 GiB are refused when a run is planned.
    found.put_slice(&prefix(Prefix { compressed: false, length: length as u32 }));
    found.put_slice(message);
    found.put_slice(&marks);
    found.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Target;
    use pb::infer_parameter::ParameterChoice as Choice;
    use penstock_wire::grpc::pb;
    use prost::Message;

    #[test]
    fn marks_of_a_sequence_are_parameters_of_the_message() {
        let mark = Mark { sequence: 300, start: true, end: false };
        assert_eq!(
            decoded(&framed(&model("m"), Some(mark))),
            ("m".into(), Some(Choice::Int64Param(300)), Some(Choice::BoolParam(true)), Some(Choice::BoolParam(false)))
        );
    }

    #[test]
    fn marks_of_a_sequence_are_parameters_of_the_text() {
        let item = Item::new(Bytes::from_static(b"{\"inputs\":[]}\x01\x02"), Some(13), None);
        let mark = Mark { sequence: 7, start: false, end: true };
        let target = Target {
            protocol: Protocol::Http,
            address: "h:1".into(),
            path: "/v2?x=y".into(),
            headers: vec![("A".into(), "b".into())],
        };
        let found = item.prepared(&target.common().unwrap(), Some(mark));
        let length: usize = found.headers[HEADER_LENGTH].to_str().unwrap().parse().unwrap();
        assert_eq!(&found.body[length..], b"\x01\x02");
        assert_eq!(
            std::str::from_utf8(&found.body[..length]).unwrap(),
            r#"{"parameters":{"sequence_id":7,"sequence_start":false,"sequence_end":true},"inputs":[]}"#
        );
        let head = format!(
            "POST /v2?x=y HTTP/1.1\r\nhost: h:1\r\na: b\r\n{HEADER_LENGTH}: {length}\r\n\
             content-type: application/octet-stream\r\ncontent-length: {}\r\n\r\n",
            found.body.len()
        );
        assert_eq!(found.head, head);
    }

    fn model(name: &str) -> Vec<u8> {
        let mut found = BytesMut::new();
        put_bytes(&mut found, 1, name.as_bytes());
        found.to_vec()
    }

    type Marks = (String, Option<Choice>, Option<Choice>, Option<Choice>);

    fn decoded(framed: &[u8]) -> Marks {
        let message = pb::ModelInferRequest::decode(&framed[PREFIX_BYTES..]).unwrap();
        let found = |name: &str| message.parameters.get(name).and_then(|value| value.parameter_choice.clone());
        (message.model_name.clone(), found("sequence_id"), found("sequence_start"), found("sequence_end"))
    }
}
