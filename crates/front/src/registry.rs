//! The models that requests can reach, by name and version.

use bytes::Bytes;
use parking_lot::RwLock;
use penstock_dispatch::Queue;
use penstock_schema::{Error, ModelSpec, Result};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A version of a model that can take requests.
pub struct ModelVersion {
    pub spec: ModelSpec,
    pub queue: Arc<Queue>,
    pub metadata: Bytes,
    /// Seconds from the start of loading to ready, for the metrics page.
    pub load_seconds: f64,
    /// Whether requests can differ in anything but their rows, so that their shapes must be compared.
    pub varies: bool,
}

impl ModelVersion {
    pub fn new(spec: ModelSpec, queue: Arc<Queue>, load_seconds: f64) -> Arc<ModelVersion> {
        let metadata = penstock_wire::metadata::model_json(&spec, &[spec.version]);
        let varies = spec.inputs.iter().any(|input| input.optional || input.dims.iter().any(|&size| size < 0));
        Arc::new(ModelVersion { spec, queue, metadata, load_seconds, varies })
    }
}

#[derive(Clone, Default)]
struct Model {
    versions: BTreeMap<u64, Arc<ModelVersion>>,
    /// Why the latest attempt to load failed, or that it is under way.
    pending: Option<String>,
}

#[derive(Default)]
pub struct Registry {
    models: RwLock<HashMap<String, Model>>,
}

impl Registry {
    /// Puts these versions in place of all earlier ones of the model, at once. Returns those that were replaced, which
    /// still hold queued requests.
    pub fn publish(&self, name: &str, versions: Vec<Arc<ModelVersion>>) -> Vec<Arc<ModelVersion>> {
        let versions = versions.into_iter().map(|version| (version.spec.version, version)).collect();
        let before = self.models.write().insert(name.to_owned(), Model { versions, pending: None });
        before.map(|model| model.versions.into_values().collect()).unwrap_or_default()
    }

    /// Takes the model out of service, keeping its name known as one without available versions.
    pub fn withdraw(&self, name: &str) -> Vec<Arc<ModelVersion>> {
        let mut models = self.models.write();
        let Some(model) = models.get_mut(name) else { return Vec::new() };
        model.pending = None;
        std::mem::take(&mut model.versions).into_values().collect()
    }

    /// Takes the model out of service and forgets its name.
    pub fn forget(&self, name: &str) {
        self.models.write().remove(name);
    }

    /// Notes that the model is not what it should be: loading, or failed. Versions in service stay in service.
    pub fn set_pending(&self, name: &str, reason: Option<String>) {
        self.models.write().entry(name.to_owned()).or_default().pending = reason;
    }

    pub fn all_ready(&self) -> bool {
        self.models.read().values().all(|model| model.pending.is_none())
    }

    /// The version that a request names; without one, the latest.
    pub fn get(&self, name: &str, version: Option<&str>) -> Result<Arc<ModelVersion>> {
        let models = self.models.read();
        let Some(model) = models.get(name) else { return Err(unknown(name)) };
        let Some((_, latest)) = model.versions.last_key_value() else {
            return Err(Error::not_found(format!("Request for unknown model: '{name}' has no available versions")));
        };
        match version {
            None | Some("") => Ok(latest.clone()),
            Some(text) => {
                let found = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
                found.and_then(|number: u64| model.versions.get(&number)).cloned().ok_or_else(|| {
                    let known: Vec<String> = model.versions.keys().map(u64::to_string).collect();
                    Error::not_found(format!(
                        "Request for unknown model: '{name}' version {} is not found; available: {}",
                        clip(text),
                        known.join(", ")
                    ))
                })
            }
        }
    }

    /// All versions in service, by name and number.
    pub fn all(&self) -> Vec<Arc<ModelVersion>> {
        let models = self.models.read();
        let mut versions: Vec<_> = models.values().flat_map(|model| model.versions.values().cloned()).collect();
        versions.sort_by(|a, b| (&a.spec.name, a.spec.version).cmp(&(&b.spec.name, b.spec.version)));
        versions
    }

    pub fn versions(&self, name: &str) -> Vec<u64> {
        self.models.read().get(name).map(|model| model.versions.keys().copied().collect()).unwrap_or_default()
    }
}

fn unknown(name: &str) -> Error {
    Error::not_found(format!("Request for unknown model: '{}' is not found", clip(name)))
}

/// A name from a request, short enough to repeat in an error.
pub fn clip(text: &str) -> String {
    const LONGEST: usize = 128;
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    text.chars().take(LONGEST).chain("...".chars()).collect()
}
