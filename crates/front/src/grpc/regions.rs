//! Shared memory over gRPC: status, register and unregister.

use super::Reply;
use super::unary::{decode, reply};
use crate::body::aside;
use crate::regions::Kind;
use crate::server::Server;
use bytes::Bytes;
use penstock_schema::{Error, Result};
use penstock_wire::grpc::pb;
use std::sync::Arc;

/// One call whose method is about regions.
pub async fn answer(server: &Arc<Server>, method: &str, bytes: Bytes) -> Result<Reply> {
    let regions = &server.regions;
    // An empty name means every region.
    let one = |name: String| (!name.is_empty()).then_some(name);
    match method {
        "SystemSharedMemoryStatus" => {
            use pb::system_shared_memory_status_response::RegionStatus;
            let request: pb::SystemSharedMemoryStatusRequest = decode(bytes)?;
            let found = regions.status(Kind::System, one(request.name).as_deref())?;
            let row = |region: &crate::regions::Region| {
                let (key, offset) = region.object().unwrap_or_default();
                let (name, key, byte_size) = (region.name.clone(), key.to_owned(), region.byte_size);
                (name.clone(), RegionStatus { name, key, offset, byte_size })
            };
            reply(&pb::SystemSharedMemoryStatusResponse { regions: found.iter().map(|region| row(region)).collect() })
        }
        "CudaSharedMemoryStatus" => {
            use pb::cuda_shared_memory_status_response::RegionStatus;
            let request: pb::CudaSharedMemoryStatusRequest = decode(bytes)?;
            let found = regions.status(Kind::Device, one(request.name).as_deref())?;
            let row = |region: &crate::regions::Region| {
                let device_id = region.device().unwrap_or_default().unsigned_abs();
                let (name, byte_size) = (region.name.clone(), region.byte_size);
                (name.clone(), RegionStatus { name, device_id, byte_size })
            };
            reply(&pb::CudaSharedMemoryStatusResponse { regions: found.iter().map(|region| row(region)).collect() })
        }
        "SystemSharedMemoryRegister" => {
            regions.permit()?;
            let request: pb::SystemSharedMemoryRegisterRequest = decode(bytes)?;
            let pb::SystemSharedMemoryRegisterRequest { name, key, offset, byte_size } = request;
            let server = server.clone();
            aside(move || server.regions.register_system(&name, &key, offset, byte_size)).await?;
            reply(&pb::SystemSharedMemoryRegisterResponse {})
        }
        "CudaSharedMemoryRegister" => {
            regions.permit()?;
            let request: pb::CudaSharedMemoryRegisterRequest = decode(bytes)?;
            let pb::CudaSharedMemoryRegisterRequest { name, raw_handle, device_id, byte_size } = request;
            let server = server.clone();
            aside(move || server.regions.register_device(&name, &raw_handle, device_id, byte_size)).await?;
            reply(&pb::CudaSharedMemoryRegisterResponse {})
        }
        // Load generators unregister everything before they start, also where nothing can be registered.
        "SystemSharedMemoryUnregister" => {
            let request: pb::SystemSharedMemoryUnregisterRequest = decode(bytes)?;
            regions.unregister(Kind::System, one(request.name).as_deref());
            reply(&pb::SystemSharedMemoryUnregisterResponse {})
        }
        "CudaSharedMemoryUnregister" => {
            let request: pb::CudaSharedMemoryUnregisterRequest = decode(bytes)?;
            regions.unregister(Kind::Device, one(request.name).as_deref());
            reply(&pb::CudaSharedMemoryUnregisterResponse {})
        }
        _ => Err(Error::unsupported("not a call about shared memory")),
    }
}
