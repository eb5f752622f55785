//! The unary calls that are not inference: prost messages in and out.

use super::{Call, Reply, message, regions, success};
use crate::body::Frames;
use crate::operations;
use crate::server::{OperationRequest, Server};
use crate::shard::Shard;
use crate::statistics;
use bytes::Bytes;
use http::HeaderMap;
use penstock_schema::{Error, Result};
use penstock_wire::grpc::{self, pb};
use penstock_wire::metadata;
use prost::Message;
use std::sync::Arc;

/// One call of the inference service.
pub async fn answer(shard: &Arc<Shard>, method: &str, call: Call) -> Result<Reply> {
    let server = &shard.server;
    let bytes = message(call.body, call.encoding, shard).await?;
    match method {
        "ServerLive" => reply(&pb::ServerLiveResponse { live: true }),
        "ServerReady" => reply(&pb::ServerReadyResponse { ready: server.is_ready() }),
        "ServerMetadata" => {
            let config = &server.config;
            reply(&metadata::server_pb(&config.server_name, &config.server_version, &config.extensions))
        }
        "ModelReady" => {
            let request: pb::ModelReadyRequest = decode(bytes)?;
            let ready = server.registry.get(&request.name, Some(&request.version)).is_ok();
            reply(&pb::ModelReadyResponse { ready })
        }
        "ModelMetadata" => {
            let request: pb::ModelMetadataRequest = decode(bytes)?;
            let model = server.registry.get(&request.name, Some(&request.version))?;
            reply(&metadata::model_pb(&model.spec, &server.registry.versions(&request.name)))
        }
        "ModelConfig" => {
            let request: pb::ModelConfigRequest = decode(bytes)?;
            let model = server.registry.get(&request.name, Some(&request.version))?;
            reply(&pb::RawModelConfigResponse { config: model.spec.config_proto.clone() })
        }
        "ModelStatistics" => {
            let request: pb::ModelStatisticsRequest = decode(bytes)?;
            let models = statistics::select(server, Some(&request.name), Some(&request.version))?;
            reply(&pb::ModelStatisticsResponse {
                model_stats: models.iter().map(|model| statistics::message(model)).collect(),
            })
        }
        "RepositoryIndex" => {
            let request: pb::RepositoryIndexRequest = decode(bytes)?;
            let rows = operations::index(server, request.ready).await?;
            let models = rows.into_iter().map(|row| pb::repository_index_response::ModelIndex {
                name: row.name,
                version: row.version,
                state: row.state,
                reason: row.reason,
            });
            reply(&pb::RepositoryIndexResponse { models: models.collect() })
        }
        "RepositoryModelLoad" => {
            load(server, &call.headers, decode(bytes)?).await?;
            reply(&pb::RepositoryModelLoadResponse {})
        }
        "RepositoryModelUnload" => {
            unload(server, &call.headers, decode(bytes)?).await?;
            reply(&pb::RepositoryModelUnloadResponse {})
        }
        "SystemSharedMemoryStatus"
        | "SystemSharedMemoryRegister"
        | "SystemSharedMemoryUnregister"
        | "CudaSharedMemoryStatus"
        | "CudaSharedMemoryRegister"
        | "CudaSharedMemoryUnregister" => regions::answer(server, method, bytes).await,
        "TraceSetting" => Err(Error::unsupported("tracing is not supported by this server")),
        "LogSettings" => Err(Error::unsupported("changing the log settings is not supported by this server")),
        _ => Err(Error::unsupported(format!(
            "unknown method '{}' of inference.GRPCInferenceService",
            crate::registry::clip(method)
        ))),
    }
}

/// `grpc.health.v1.Health/Check`: the server as a whole, its inference service, or a model by name.
pub async fn health(shard: &Arc<Shard>, call: Call) -> Result<Reply> {
    use pb::health::health_check_response::ServingStatus;
    let server = &shard.server;
    let request: pb::health::HealthCheckRequest = decode(message(call.body, call.encoding, shard).await?)?;
    let serving = match request.service.as_str() {
        "" | "inference.GRPCInferenceService" => server.is_ready(),
        model => {
            let found = server.registry.get(model, None);
            found.map_err(|_| Error::not_found(format!("unknown service '{}'", crate::registry::clip(model))))?;
            server.is_ready()
        }
    };
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    reply(&pb::health::HealthCheckResponse { status: status.into() })
}

async fn load(server: &Server, headers: &HeaderMap, request: pb::RepositoryModelLoadRequest) -> Result<()> {
    use pb::model_repository_parameter::ParameterChoice;
    operations::authorise(server, headers)?;
    let mut config = None;
    let mut files = Vec::new();
    for (key, parameter) in request.parameters {
        match (key.strip_prefix("file:"), parameter.parameter_choice) {
            (Some(file), Some(ParameterChoice::BytesParam(content))) => files.push((file.to_owned(), content)),
            (None, Some(ParameterChoice::StringParam(text))) if key == "config" => config = Some(text),
            _ => return Err(operations::unknown_parameter(&key)),
        }
    }
    operations::load(server, &request.model_name, config, files).await
}

async fn unload(server: &Server, headers: &HeaderMap, request: pb::RepositoryModelUnloadRequest) -> Result<()> {
    use pb::model_repository_parameter::ParameterChoice;
    operations::authorise(server, headers)?;
    let mut dependents = false;
    for (key, parameter) in request.parameters {
        match (key.as_str(), parameter.parameter_choice) {
            ("unload_dependents", Some(ParameterChoice::BoolParam(value))) => dependents = value,
            _ => return Err(operations::unknown_parameter(&key)),
        }
    }
    let model = request.model_name;
    operations::operate(server, &model.clone(), OperationRequest::Unload { model, dependents }).await
}

pub fn decode<M: Message + Default>(bytes: Bytes) -> Result<M> {
    M::decode(bytes).map_err(|error| Error::invalid(format!("request is not a valid protobuf message: {error}")))
}

pub fn reply(message: &impl Message) -> Result<Reply> {
    Ok(success(Frames::one(grpc::frame(message)?)))
}
