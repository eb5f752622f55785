//! Memory of a GPU that another process shared through CUDA IPC. Reaching it needs NVIDIA's driver, which whoever starts
//! the front brings along.

use penstock_schema::{Error, Result};
use std::sync::Arc;

/// Length of a `CUipcMemHandle`.
pub const HANDLE_BYTES: usize = 64;

/// The driver. Calls may take long and are not made on a shard's thread.
pub trait Devices: Send + Sync {
    /// Maps the memory of a handle and returns what the other calls know it by. Errors: 400 for a handle or device that is
    /// none, or less memory than `byte_size`; 501 without a driver.
    fn open(&self, region: &str, handle: &[u8; HANDLE_BYTES], device: i64, byte_size: u64) -> Result<u64>;

    fn read(&self, mapping: u64, offset: u64, into: &mut [u8]) -> Result<()>;

    fn write(&self, mapping: u64, offset: u64, from: &[u8]) -> Result<()>;

    fn close(&self, mapping: u64);
}

/// A mapping, given back when the last request that named it is answered.
pub struct DeviceMemory {
    pub device: i64,
    mapping: u64,
    devices: Arc<dyn Devices>,
}

impl DeviceMemory {
    pub fn open(
        devices: Arc<dyn Devices>,
        region: &str,
        handle: &[u8],
        device: i64,
        byte_size: u64,
    ) -> Result<DeviceMemory> {
        let handle = handle.try_into().map_err(|_| {
            Error::invalid(format!(
                "CUDA shared memory region '{region}': expected a raw_handle of {HANDLE_BYTES} bytes, got {}",
                handle.len()
            ))
        })?;
        let mapping = devices.open(region, handle, device, byte_size)?;
        Ok(DeviceMemory { device, mapping, devices })
    }

    pub fn read(&self, offset: u64, length: usize, into: &mut Vec<u8>) -> Result<()> {
        let begin = into.len();
        into.resize(begin + length, 0);
        self.devices.read(self.mapping, offset, &mut into[begin..])
    }

    pub fn write(&self, offset: u64, from: &[u8]) -> Result<()> {
        self.devices.write(self.mapping, offset, from)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let (devices, mapping) = (self.devices.clone(), self.mapping);
        // The last one may be a request on a shard's thread, which must not wait for the driver.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || devices.close(mapping))),
            Err(_) => devices.close(mapping),
        }
    }
}
