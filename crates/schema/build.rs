//! Turns `limits.toml`, the one source of every bound, into constants. Python reads the same file.

use std::{env, error::Error, fmt::Write, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let source = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../../python/penstock/limits.toml");
    println!("cargo:rerun-if-changed={}", source.display());
    let table: toml::Table = fs::read_to_string(&source)?.parse()?;
    let mut code = String::new();
    for (name, entry) in &table {
        let value = entry.get("value").and_then(toml::Value::as_integer).ok_or(format!("{name}: no integer value"))?;
        let reason = entry.get("reason").and_then(toml::Value::as_str).ok_or(format!("{name}: no reason"))?;
        writeln!(code, "#[doc = {reason:?}]\npub const {}: u64 = {value};", name.to_uppercase())?;
    }
    fs::write(Path::new(&env::var("OUT_DIR")?).join("limits.rs"), code)?;
    Ok(())
}
