//! Model statistics in the shape perf_analyzer reads without checking, for both protocols from one source: the protobuf
//! message, whose JSON form is the HTTP answer.

use crate::registry::ModelVersion;
use crate::server::Server;
use penstock_dispatch::{BatchStatistics, Total};
use penstock_schema::{Error, Result};
use penstock_wire::grpc::pb;
use serde_json::{Value, json};

/// The versions a statistics request names: all, those of a model, or one. Unknown ones are 400, as in Triton.
pub fn select(server: &Server, name: Option<&str>, version: Option<&str>) -> Result<Vec<std::sync::Arc<ModelVersion>>> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(server.registry.all()) };
    let latest = server.registry.get(name, version).map_err(|error| Error::invalid(error.message))?;
    if version.is_some_and(|version| !version.is_empty()) {
        return Ok(vec![latest]);
    }
    Ok(server.registry.all().into_iter().filter(|model| model.spec.name == name).collect())
}

pub fn message(model: &ModelVersion) -> pb::ModelStatistics {
    let statistics = model.queue.statistics();
    pb::ModelStatistics {
        name: model.spec.name.clone(),
        version: model.spec.version.to_string(),
        last_inference: statistics.last_inference,
        inference_count: statistics.inference_count,
        execution_count: statistics.execution_count,
        inference_stats: Some(pb::InferStatistics {
            success: duration(statistics.success),
            fail: duration(statistics.fail),
            queue: duration(statistics.queue),
            compute_input: duration(statistics.compute_input),
            compute_infer: duration(statistics.compute_infer),
            compute_output: duration(statistics.compute_output),
            cache_hit: duration(Total::default()),
            cache_miss: duration(Total::default()),
        }),
        batch_stats: statistics.batches.iter().map(batch).collect(),
        memory_usage: Vec::new(),
        response_stats: Default::default(),
    }
}

fn duration(total: Total) -> Option<pb::StatisticDuration> {
    Some(pb::StatisticDuration { count: total.count, ns: total.ns })
}

fn batch(batch: &BatchStatistics) -> pb::InferBatchStatistics {
    pb::InferBatchStatistics {
        batch_size: batch.batch_size.into(),
        compute_input: duration(batch.compute_input),
        compute_infer: duration(batch.compute_infer),
        compute_output: duration(batch.compute_output),
    }
}

pub fn as_json(model: &pb::ModelStatistics) -> Value {
    let infer = model.inference_stats.unwrap_or_default();
    let batches: Vec<Value> = model
        .batch_stats
        .iter()
        .map(|batch| {
            json!({
                "batch_size": batch.batch_size,
                "compute_input": time(&batch.compute_input),
                "compute_infer": time(&batch.compute_infer),
                "compute_output": time(&batch.compute_output),
            })
        })
        .collect();
    json!({
        "name": model.name,
        "version": model.version,
        "last_inference": model.last_inference,
        "inference_count": model.inference_count,
        "execution_count": model.execution_count,
        "inference_stats": {
            "success": time(&infer.success),
            "fail": time(&infer.fail),
            "queue": time(&infer.queue),
            "compute_input": time(&infer.compute_input),
            "compute_infer": time(&infer.compute_infer),
            "compute_output": time(&infer.compute_output),
            "cache_hit": time(&infer.cache_hit),
            "cache_miss": time(&infer.cache_miss),
        },
        "response_stats": {},
        "batch_stats": batches,
        "memory_usage": [],
    })
}

fn time(duration: &Option<pb::StatisticDuration>) -> Value {
    let duration = duration.unwrap_or_default();
    json!({"count": duration.count, "ns": duration.ns})
}
