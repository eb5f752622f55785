//! A model version as Python hands it over: its specification, its batching, its queue.

use crate::concurrent::Serving;
use crate::exchange::Exchange;
use crate::instance::{Execute, Instance};
use crate::slab::Lent;
use bytes::Bytes;
use penstock_dispatch::{Mode, Monotonic, Queue, QueuePolicy, Settings, TimeoutAction};
use penstock_front::ModelVersion;
use penstock_schema::{Axis, DataType, ModelSpec, OutputAxis, Padding, TensorSpec};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

const NANOS_PER_MICROSECOND: u64 = 1000;

/// `serve.spec.Tensor`
#[derive(FromPyObject)]
struct TensorArgument {
    name: String,
    datatype: String,
    dims: Vec<i64>,
    optional: bool,
}

/// `serve.spec.InputPadding`
#[derive(FromPyObject)]
struct InputPaddingArgument {
    name: String,
    axis: usize,
    multiple: i64,
    value: f64,
}

/// `serve.spec.OutputPadding`
#[derive(FromPyObject)]
struct OutputPaddingArgument {
    name: String,
    axis: usize,
    divisor: i64,
}

/// `serve.spec.Policy`
#[derive(FromPyObject)]
struct PolicyArgument {
    delay_expired: bool,
    default_timeout_us: u64,
    allow_override: bool,
    max_queue_size: u32,
}

/// `serve.spec.Batching`
#[derive(FromPyObject)]
struct BatchingArgument {
    mode: String,
    preferred: Vec<u32>,
    max_delay_us: u64,
    preserve_ordering: bool,
    priority_levels: u32,
    default_priority_level: u32,
    default_policy: PolicyArgument,
    priority_policies: BTreeMap<u32, PolicyArgument>,
    max_queue_requests: u64,
    max_queue_bytes: u64,
}

/// `serve.spec.Specification`
#[derive(FromPyObject)]
pub struct SpecificationArgument {
    name: String,
    version: u64,
    platform: String,
    max_batch_size: u32,
    instances: u32,
    inputs: Vec<TensorArgument>,
    outputs: Vec<TensorArgument>,
    input_padding: Vec<InputPaddingArgument>,
    output_padding: Vec<OutputPaddingArgument>,
    batching: BatchingArgument,
    config_json: Vec<u8>,
    config_proto: Vec<u8>,
    load_seconds: f64,
    fresh_outputs: bool,
    on_device: bool,
}

/// One version of one model: published when its instances are ready.
#[pyclass(frozen, module = "penstock._core")]
pub struct Model {
    pub spec: Arc<ModelSpec>,
    pub queue: Arc<Queue>,
    /// Instances that are running.
    pub alive: Arc<AtomicUsize>,
    pub fresh_outputs: bool,
    load_seconds: f64,
}

impl Model {
    /// The version as the front knows it.
    pub fn version(&self) -> Arc<ModelVersion> {
        ModelVersion::new((*self.spec).clone(), self.queue.clone(), self.load_seconds)
    }
}

#[pymethods]
impl Model {
    /// Errors: ValueError for a data type or tensor name that does not exist.
    #[new]
    fn new(specification: SpecificationArgument) -> PyResult<Model> {
        let SpecificationArgument { batching, max_batch_size, instances, .. } = &specification;
        let settings = settings(batching, *max_batch_size, *instances)?;
        let (load_seconds, fresh_outputs) = (specification.load_seconds, specification.fresh_outputs);
        Ok(Model {
            spec: Arc::new(specification.spec()?),
            queue: Queue::new(settings, Monotonic),
            alive: Arc::default(),
            load_seconds,
            fresh_outputs,
        })
    }

    /// Works through batches until the model is closed and its queue empty. `execute` takes a dictionary of arrays,
    /// with the batch as dimension 0, and returns one. `memory`: by input a writable buffer in which batches are laid out
    /// where they fit; `execute` has read it once it returns. Errors: ValueError for a buffer that is none, or read-only.
    /// `execute_on_device` takes batches of which some rows lie on a GPU or some answers stay there (`mixed::call`); of
    /// models whose specification says so.
    #[pyo3(signature = (instance, execute, memory=None, execute_on_device=None))]
    fn run(
        &self,
        py: Python<'_>,
        instance: usize,
        execute: Py<PyAny>,
        memory: Option<HashMap<String, Bound<'_, PyAny>>>,
        execute_on_device: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let mut memory = memory.unwrap_or_default();
        let lent = |input: &TensorSpec| memory.remove(&input.name).map(|buffer| Lent::new(&buffer)).transpose();
        let lent = self.spec.inputs.iter().map(lent).collect::<PyResult<_>>()?;
        Instance::new(py, instance, self, Execute { on_host: execute, on_device: execute_on_device }, lent).run(py);
        Ok(())
    }

    /// Works through requests until the model is closed, its queue empty and every request answered; for a model whose
    /// requests run side by side on the event loop of `exchange`. There `begin` is called with each, at most
    /// `max_concurrency` of which are under way at a time.
    fn run_concurrently(
        &self,
        py: Python<'_>,
        exchange: PyRef<'_, Exchange>,
        begin: Py<PyAny>,
        max_concurrency: usize,
    ) -> PyResult<()> {
        let serving = Serving::new(py, self, exchange.shared(), begin, max_concurrency);
        drop(exchange);
        py.detach(|| serving.run());
        Ok(())
    }

    /// Takes no more requests; those queued are still worked on.
    fn close(&self) {
        self.queue.close();
    }

    /// As `close`, but those queued are answered with an error.
    fn abort(&self) {
        self.queue.abort();
    }

    #[getter]
    fn name(&self) -> &str {
        &self.spec.name
    }

    #[getter]
    fn pending(&self) -> usize {
        self.queue.pending()
    }

    #[getter]
    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }
}

impl SpecificationArgument {
    fn spec(self) -> PyResult<ModelSpec> {
        let inputs: Vec<TensorSpec> = self.inputs.into_iter().map(TensorArgument::spec).collect::<PyResult<_>>()?;
        let outputs: Vec<TensorSpec> = self.outputs.into_iter().map(TensorArgument::spec).collect::<PyResult<_>>()?;
        let padding = Padding {
            inputs: self
                .input_padding
                .into_iter()
                .map(|rule| {
                    Ok(Axis {
                        input: position(&inputs, &rule.name)?,
                        axis: rule.axis,
                        multiple: rule.multiple,
                        value: rule.value,
                    })
                })
                .collect::<PyResult<_>>()?,
            outputs: self
                .output_padding
                .into_iter()
                .map(|rule| {
                    Ok(OutputAxis { output: position(&outputs, &rule.name)?, axis: rule.axis, divisor: rule.divisor })
                })
                .collect::<PyResult<_>>()?,
        };
        Ok(ModelSpec {
            name: self.name,
            version: self.version,
            platform: self.platform,
            max_batch_size: self.max_batch_size,
            inputs,
            outputs,
            padding: (!padding.inputs.is_empty()).then_some(padding),
            on_device: self.on_device,
            config_json: Bytes::from(self.config_json),
            config_proto: Bytes::from(self.config_proto),
        })
    }
}

fn position(tensors: &[TensorSpec], name: &str) -> PyResult<usize> {
    let found = tensors.iter().position(|tensor| tensor.name == name);
    found.ok_or_else(|| PyValueError::new_err(format!("padding: there is no tensor '{name}'")))
}

impl TensorArgument {
    fn spec(self) -> PyResult<TensorSpec> {
        let datatype = DataType::parse(&self.datatype).ok_or_else(|| {
            PyValueError::new_err(format!("tensor '{}': there is no data type '{}'", self.name, self.datatype))
        })?;
        Ok(TensorSpec { name: self.name, datatype, dims: self.dims, optional: self.optional })
    }
}

fn settings(batching: &BatchingArgument, max_batch_size: u32, instances: u32) -> PyResult<Settings> {
    let mode = match batching.mode.as_str() {
        "auto" => Mode::Auto,
        "off" => Mode::Off,
        "triton" => Mode::Triton {
            preferred: batching.preferred.clone(),
            max_delay: batching.max_delay_us.saturating_mul(NANOS_PER_MICROSECOND),
        },
        other => {
            return Err(PyValueError::new_err(format!("batching mode: expected auto, off or triton, got {other}")));
        }
    };
    Ok(Settings {
        max_batch_size,
        instances,
        mode: if max_batch_size == 0 { Mode::Off } else { mode },
        preserve_ordering: batching.preserve_ordering,
        max_requests: batching.max_queue_requests,
        max_bytes: batching.max_queue_bytes,
        priority_levels: batching.priority_levels,
        default_priority_level: batching.default_priority_level,
        default_policy: batching.default_policy.policy(),
        priority_policies: batching.priority_policies.iter().map(|(level, policy)| (*level, policy.policy())).collect(),
    })
}

impl PolicyArgument {
    fn policy(&self) -> QueuePolicy {
        QueuePolicy {
            timeout_action: if self.delay_expired { TimeoutAction::Delay } else { TimeoutAction::Reject },
            default_timeout: self.default_timeout_us.saturating_mul(NANOS_PER_MICROSECOND),
            allow_override: self.allow_override,
            max_queue_size: self.max_queue_size,
        }
    }
}
