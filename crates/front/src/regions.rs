//! Shared memory that clients registered: by name, system and device memory in one space of names, as in Triton.
//!
//! Off unless the operator says otherwise, since whoever may register names memory of this machine. Promises: nothing is
//! mapped, so a client that cuts or corrupts its memory gets an error or its own garbage, never a fault of the server; what
//! is read is copied once and then checked like any other tensor; a region that is unregistered stays until the requests
//! that named it are answered. Called by both protocols.

mod device;
mod requests;
mod system;

pub use device::{Devices, HANDLE_BYTES};
pub use requests::{Here, Request, complete};

use crate::registry::clip;
use device::DeviceMemory;
use parking_lot::RwLock;
use penstock_schema::{Code, Error, Result, limits};
use penstock_wire::Place;
use std::collections::BTreeMap;
use std::sync::Arc;
use system::{Objects, SystemMemory};

/// The two extensions, which share everything but what is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    System,
    Device,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::System => "system",
            Kind::Device => "CUDA",
        }
    }
}

enum Memory {
    System(SystemMemory),
    Device(DeviceMemory),
}

/// One region. Ranges of it are given relative to its start.
pub struct Region {
    pub name: String,
    pub byte_size: u64,
    memory: Memory,
}

impl Region {
    pub fn kind(&self) -> Kind {
        match self.memory {
            Memory::System(_) => Kind::System,
            Memory::Device(_) => Kind::Device,
        }
    }

    /// Key and offset of system memory.
    pub fn object(&self) -> Option<(&str, u64)> {
        match &self.memory {
            Memory::System(memory) => Some((&memory.key, memory.offset)),
            Memory::Device(_) => None,
        }
    }

    pub fn device(&self) -> Option<i64> {
        match &self.memory {
            Memory::System(_) => None,
            Memory::Device(memory) => Some(memory.device),
        }
    }

    /// Appends the bytes at `offset`, which the caller has checked to be inside.
    fn read(&self, offset: u64, length: usize, into: &mut Vec<u8>) -> Result<()> {
        match &self.memory {
            Memory::System(memory) => memory.read(&self.name, offset, length, into),
            Memory::Device(memory) => memory.read(offset, length, into),
        }
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<()> {
        match &self.memory {
            Memory::System(memory) => memory.write(&self.name, offset, from),
            Memory::Device(memory) => memory.write(offset, from),
        }
    }
}

/// All regions of a server.
pub struct Regions {
    allowed: bool,
    named: RwLock<BTreeMap<String, Arc<Region>>>,
    objects: Objects,
    /// `None` where nothing here can reach device memory.
    devices: Option<Arc<dyn Devices>>,
}

impl Regions {
    pub fn new(allowed: bool, devices: Option<Arc<dyn Devices>>) -> Regions {
        Regions { allowed, named: RwLock::default(), objects: Objects::default(), devices }
    }

    /// Error: 501 when the operator has not allowed any of this.
    pub fn permit(&self) -> Result<()> {
        if self.allowed {
            return Ok(());
        }
        Err(Error::unsupported(
            "shared memory is not enabled on this server: send tensors in the request, or start it with --allow-client-shm true",
        ))
    }

    /// Names the range of an object of POSIX shared memory. Opens files, so not for a shard's thread.
    pub fn register_system(&self, name: &str, key: &str, offset: u64, byte_size: u64) -> Result<()> {
        self.permit()?;
        self.check_new(name, byte_size)?;
        let memory = self.objects.open(name, key, offset, byte_size)?;
        self.add(Region { name: name.to_owned(), byte_size, memory: Memory::System(memory) })
    }

    /// Names the memory behind a CUDA IPC handle. Calls the driver, so not for a shard's thread.
    pub fn register_device(&self, name: &str, handle: &[u8], device: i64, byte_size: u64) -> Result<()> {
        self.permit()?;
        self.check_new(name, byte_size)?;
        let devices = self.devices.as_ref().ok_or_else(|| {
            Error::unsupported(format!(
                "failed to register CUDA shared memory region '{name}': this server has no NVIDIA GPU"
            ))
        })?;
        let memory = DeviceMemory::open(devices.clone(), name, handle, device, byte_size)?;
        self.add(Region { name: name.to_owned(), byte_size, memory: Memory::Device(memory) })
    }

    /// The regions of a kind in the order of their names; of one name, 404 when there is none.
    pub fn status(&self, kind: Kind, name: Option<&str>) -> Result<Vec<Arc<Region>>> {
        let named = self.named.read();
        let Some(name) = name else {
            return Ok(named.values().filter(|region| region.kind() == kind).cloned().collect());
        };
        match named.get(name).filter(|region| region.kind() == kind) {
            Some(region) => Ok(vec![region.clone()]),
            None => Err(unknown(kind.name(), name)),
        }
    }

    /// Forgets a region, or all of a kind; one that is not there is forgotten already.
    pub fn unregister(&self, kind: Kind, name: Option<&str>) {
        // Dropped behind the lock: the last descriptor of an object that is unlinked frees all its pages.
        let mut gone = Vec::new();
        let mut named = self.named.write();
        let of_kind =
            named.iter().filter(|(key, region)| region.kind() == kind && name.is_none_or(|one| one == key.as_str()));
        let keys: Vec<_> = of_kind.map(|(key, _)| key.clone()).collect();
        gone.extend(keys.iter().filter_map(|key| named.remove(key)));
        drop(named);
    }

    /// The region that a tensor names, its range checked. Errors: 404 for an unknown one, 400 for a range beyond it.
    fn find(&self, place: &Place) -> Result<Arc<Region>> {
        let region = self.named.read().get(&place.region).cloned();
        let region = region.ok_or_else(|| unknown("shared memory", &place.region))?;
        // The sum was checked when it was read.
        if place.offset + place.byte_size > region.byte_size {
            return Err(Error::invalid(format!(
                "shared memory region '{}': expected a range within its {} bytes, got {} bytes at offset {}",
                region.name, region.byte_size, place.byte_size, place.offset
            )));
        }
        Ok(region)
    }

    fn check_new(&self, name: &str, byte_size: u64) -> Result<()> {
        let sound = !name.is_empty() && name.len() as u64 <= limits::NAME_BYTES && !name.chars().any(char::is_control);
        if !sound {
            return Err(Error::invalid(format!(
                "shared memory region '{}': expected a name of 1 to {} bytes without control characters",
                clip(&name.escape_debug().to_string()),
                limits::NAME_BYTES
            )));
        }
        if byte_size == 0 {
            return Err(Error::invalid(format!("shared memory region '{name}': expected a byte_size above 0, got 0")));
        }
        self.check_room(&self.named.read(), name)
    }

    fn check_room(&self, named: &BTreeMap<String, Arc<Region>>, name: &str) -> Result<()> {
        if named.contains_key(name) {
            return Err(Error::new(
                Code::AlreadyExists,
                format!("shared memory region '{name}' already in manager: unregister it first"),
            ));
        }
        if named.len() as u64 >= limits::SHARED_MEMORY_REGIONS {
            return Err(Error::unavailable(format!(
                "shared memory region '{name}': {} are registered, the limit; unregister some",
                named.len()
            )));
        }
        Ok(())
    }

    fn add(&self, region: Region) -> Result<()> {
        let mut named = self.named.write();
        // Another client may have been faster since the first look.
        self.check_room(&named, &region.name)?;
        named.insert(region.name.clone(), Arc::new(region));
        Ok(())
    }
}

fn unknown(kind: &str, name: &str) -> Error {
    let name = clip(&name.escape_debug().to_string());
    Error::not_found(match kind {
        "shared memory" => format!("Unable to find shared memory region: '{name}'"),
        kind => format!("Unable to find {kind} shared memory region: '{name}'"),
    })
}
