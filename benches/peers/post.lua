-- What wrk posts and what it reports. The body, its type and the length of its JSON part come by environment variables;
-- the result is one line of JSON behind "RESULT ", which harness/generators.py reads. Times in microseconds.
local file = assert(io.open(os.getenv("BENCH_BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
wrk.headers["Content-Type"] = os.getenv("BENCH_CONTENT_TYPE")
local json_length = os.getenv("BENCH_JSON_LENGTH")
if json_length then
  wrk.headers["Inference-Header-Content-Length"] = json_length
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "bad_status": %d, "broken": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.status, e.connect + e.read + e.write + e.timeout))
end
