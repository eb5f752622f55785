//! The metrics page, in Prometheus' text format. Labels come from model names and versions, never from requests.
//!
//! Triton's names and units where Triton has them; request and queue histograms beyond those, since averages of several
//! replicas can't be joined but histograms can.

use crate::registry::ModelVersion;
use crate::server::Server;
use penstock_dispatch::{Histogram, Statistics};
use std::fmt::Write;
use std::sync::Arc;

/// How a number is read off a model's statistics.
type Read = fn(&Statistics) -> u64;

/// Name, help and value of a number that a model has one of.
type Series = (&'static str, &'static str, Read);

/// Name, help, unit and value of a histogram.
type Distribution = (&'static str, &'static str, f64, fn(&Statistics) -> &Histogram);

const COUNTERS: [Series; 9] = [
    ("nv_inference_request_success", "Requests answered with tensors", |s| s.success.count),
    ("nv_inference_request_failure", "Requests answered with an error", |s| s.fail.count),
    ("nv_inference_count", "Inferences performed: rows, not batches", |s| s.inference_count),
    ("nv_inference_exec_count", "Batches executed", |s| s.execution_count),
    ("nv_inference_request_duration_us", "Request durations, summed, microseconds", |s| s.success.ns / 1000),
    ("nv_inference_queue_duration_us", "Time in the queue, summed, microseconds", |s| s.queue.ns / 1000),
    ("nv_inference_compute_input_duration_us", "Time to gather inputs, summed, microseconds", |s| {
        s.compute_input.ns / 1000
    }),
    ("nv_inference_compute_infer_duration_us", "Time in the model, summed, microseconds", |s| {
        s.compute_infer.ns / 1000
    }),
    ("nv_inference_compute_output_duration_us", "Time to split outputs, summed, microseconds", |s| {
        s.compute_output.ns / 1000
    }),
];

const REASONS: [(&str, Read); 4] = [
    ("REJECTED", |s| s.rejected),
    ("EXPIRED", |s| s.expired),
    ("CANCELED", |s| s.cancelled),
    ("BACKEND", |s| s.failed),
];

const NANOSECONDS: f64 = 1e9;

pub fn page(server: &Server) -> String {
    let models: Vec<_> = server.registry.all().into_iter().map(|model| (model.queue.statistics(), model)).collect();
    let mut page = String::with_capacity(1024 + models.len() * 4096);
    for (name, help, value) in COUNTERS {
        head(&mut page, name, help, "counter");
        for (statistics, model) in &models {
            line(&mut page, name, &labels(model), value(statistics));
        }
    }
    let name = "penstock_request_unserved_total";
    head(&mut page, name, "Requests answered with an error, by reason", "counter");
    for (statistics, model) in &models {
        for (reason, value) in REASONS {
            line(&mut page, name, &format!("{},reason=\"{reason}\"", labels(model)), value(statistics));
        }
    }
    let name = "nv_inference_pending_request_count";
    head(&mut page, name, "Requests waiting for an instance", "gauge");
    for (statistics, model) in &models {
        line(&mut page, name, &labels(model), statistics.pending);
    }
    let name = "nv_model_load_duration_secs";
    head(&mut page, name, "Time from the start of loading to ready, seconds", "gauge");
    for (_, model) in &models {
        line(&mut page, name, &labels(model), model.load_seconds);
    }
    let histograms: [Distribution; 3] = [
        ("penstock_request_duration_seconds", "From queued to answered", NANOSECONDS, |s| &s.request_duration),
        ("penstock_queue_duration_seconds", "From queued to taken by an instance", NANOSECONDS, |s| &s.queue_duration),
        ("penstock_batch_size_rows", "Rows of executed batches", 1.0, |s| &s.batch_size),
    ];
    for (name, help, unit, histogram) in histograms {
        head(&mut page, name, help, "histogram");
        for (statistics, model) in &models {
            write_histogram(&mut page, name, &labels(model), unit, histogram(statistics));
        }
    }
    for (name, help, value) in crate::host::gauges() {
        head(&mut page, name, help, "gauge");
        line(&mut page, name, "", value);
    }
    head(&mut page, "penstock_in_flight_requests", "Requests between head and answer", "gauge");
    line(&mut page, "penstock_in_flight_requests", "", server.in_flight());
    head(&mut page, "penstock_uptime_seconds", "Since the server started", "gauge");
    line(&mut page, "penstock_uptime_seconds", "", server.started.elapsed().as_secs_f64());
    page
}

fn labels(model: &Arc<ModelVersion>) -> String {
    let name = model.spec.name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("model=\"{name}\",version=\"{}\"", model.spec.version)
}

// Writing into a String cannot fail, hence the ignored results below.

fn head(page: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(page: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ =
        if labels.is_empty() { writeln!(page, "{name} {value}") } else { writeln!(page, "{name}{{{labels}}} {value}") };
}

fn write_histogram(page: &mut String, name: &str, labels: &str, unit: f64, histogram: &Histogram) {
    let bucket = format!("{name}_bucket");
    let mut below = 0;
    for (count, bound) in histogram.counts.iter().zip(histogram.bounds) {
        below += count;
        line(page, &bucket, &format!("{labels},le=\"{}\"", *bound as f64 / unit), below);
    }
    line(page, &bucket, &format!("{labels},le=\"+Inf\""), histogram.count());
    line(page, &format!("{name}_sum"), labels, histogram.sum as f64 / unit);
    line(page, &format!("{name}_count"), labels, histogram.count());
}
