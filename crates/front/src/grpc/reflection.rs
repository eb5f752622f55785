//! Server reflection: clients without .proto files ask for them here. v1 and v1alpha are the same on the wire.

use super::stream::Answers;
use super::{Call, Reply, streaming};
use crate::shard::Shard;
use bytes::Bytes;
use pb::reflection::server_reflection_request::MessageRequest;
use pb::reflection::server_reflection_response::MessageResponse;
use pb::reflection::{
    ErrorResponse, FileDescriptorResponse, ListServiceResponse, ServerReflectionRequest, ServerReflectionResponse,
    ServiceResponse,
};
use penstock_schema::Error;
use penstock_wire::Frames;
use penstock_wire::grpc::{self, pb};
use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};
use std::sync::{Arc, LazyLock};

static FILES: LazyLock<Vec<FileDescriptorProto>> =
    LazyLock::new(|| FileDescriptorSet::decode(pb::DESCRIPTORS).map(|set| set.file).unwrap_or_default());

pub fn reflect(shard: &Arc<Shard>, call: Call) -> Reply {
    streaming(Answers::start(shard.clone(), call, |message: Bytes| std::future::ready(answer(message))))
}

fn answer(message: Bytes) -> Frames {
    let request = ServerReflectionRequest::decode(message).unwrap_or_default();
    let response = match &request.message_request {
        Some(MessageRequest::ListServices(_)) => {
            MessageResponse::ListServicesResponse(ListServiceResponse { service: services() })
        }
        Some(MessageRequest::FileByFilename(name)) => files(|file| file.name() == name),
        Some(MessageRequest::FileContainingSymbol(symbol)) => files(|file| defines(file, symbol)),
        _ => failure(&Error::unsupported("this reflection request is not supported: no extensions are defined")),
    };
    let response = ServerReflectionResponse {
        valid_host: request.host.clone(),
        original_request: Some(request),
        message_response: Some(response),
    };
    grpc::frame(&response).into_iter().collect()
}

fn services() -> Vec<ServiceResponse> {
    let names = FILES
        .iter()
        .flat_map(|file| file.service.iter().map(move |service| format!("{}.{}", file.package(), service.name())));
    names.map(|name| ServiceResponse { name }).collect()
}

/// The first file that matches, and all that it imports.
fn files(matches: impl Fn(&FileDescriptorProto) -> bool) -> MessageResponse {
    let Some(first) = FILES.iter().find(|file| matches(file)) else {
        return failure(&Error::not_found("no such file or symbol"));
    };
    let mut found = vec![first];
    let mut next = 0;
    while let Some(file) = found.get(next).copied() {
        next += 1;
        for import in &file.dependency {
            let imported = FILES.iter().find(|other| other.name() == import);
            found.extend(imported.filter(|other| !found.iter().any(|known| known.name() == other.name())));
        }
    }
    let file_descriptor_proto = found.into_iter().map(|file| file.encode_to_vec().into()).collect();
    MessageResponse::FileDescriptorResponse(FileDescriptorResponse { file_descriptor_proto })
}

/// Whether a fully qualified name (service, method, message or enum) is defined in the file.
fn defines(file: &FileDescriptorProto, symbol: &str) -> bool {
    let package = file.package();
    let Some(rest) = symbol
        .strip_prefix(package)
        .and_then(|rest| if package.is_empty() { Some(rest) } else { rest.strip_prefix('.') })
    else {
        return false;
    };
    let path: Vec<&str> = rest.split('.').collect();
    let Some((first, path)) = path.split_first() else { return false };
    if let Some(service) = file.service.iter().find(|service| service.name() == *first) {
        return path.first().is_none_or(|method| service.method.iter().any(|known| known.name() == *method));
    }
    if file.enum_type.iter().any(|known| known.name() == *first) {
        return true;
    }
    file.message_type.iter().any(|message| message.name() == *first && contains(message, path))
}

fn contains(message: &DescriptorProto, path: &[&str]) -> bool {
    let Some((name, rest)) = path.split_first() else { return true };
    let is_member = message.field.iter().any(|field| field.name() == *name)
        || message.enum_type.iter().any(|known| known.name() == *name);
    is_member || message.nested_type.iter().any(|nested| nested.name() == *name && contains(nested, rest))
}

fn failure(error: &Error) -> MessageResponse {
    MessageResponse::ErrorResponse(ErrorResponse {
        error_code: error.code.grpc_status().into(),
        error_message: error.message.to_string(),
    })
}
