//! From what a model returned to the answers of a batch's jobs.
//!
//! Checked before it is split: names, types, shapes, rows. Small outputs are copied once per batch; large ones are kept
//! where they are, if nobody else can change them, and each answer is a view.

use crate::inputs::NumPy;
use bytes::{BufMut, Bytes, BytesMut};
use penstock_dispatch::Job;
use penstock_schema::{DataType, ModelSpec, Outputs, Shape, Tensor, TensorSpec};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyMapping, PyString, PyTuple};

/// Up to here an output is copied: cheaper than keeping its array alive across threads.
pub const COPY_BYTES: usize = 64 << 10;

/// One output of a whole batch.
pub struct Whole {
    shape: Shape,
    datatype: DataType,
    content: Content,
}

enum Content {
    Flat(Bytes),
    /// BYTES, encoded for the wire: where each element starts, and the end.
    Elements {
        data: Bytes,
        starts: Vec<usize>,
    },
}

/// An array that is kept alive until its last view is written. Dropped without the GIL it is released by the next
/// thread that takes the GIL.
pub struct Kept {
    pub start: *const u8,
    pub length: usize,
    pub _array: Py<PyAny>,
}

// SAFETY: the memory is only read. For answers `sole` made sure that nobody else can write to it; for calls the caller
// promises it.
unsafe impl Send for Kept {}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the array owns `length` bytes at `start` and lives as long as this.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

/// Reads what a model returned for `rows` rows. `rows` is `None` for a model without a batch dimension;
/// `promised` says that the backend never touches memory that it has returned.
pub fn read(
    py: Python<'_>,
    spec: &ModelSpec,
    names: &[Py<PyAny>],
    rows: Option<u32>,
    result: Bound<'_, PyAny>,
    promised: bool,
) -> PyResult<Vec<Whole>> {
    // A dictionary in the usual case; looked at first, since the general mapping costs more.
    let (values, fresh): (Vec<Bound<'_, PyAny>>, bool) = match result.cast_into::<PyDict>() {
        Ok(dict) => {
            let value = |name| dict.get_item(name)?.ok_or_else(|| missing(spec, name, dict.as_any()));
            let fresh = references(&dict) == 1;
            (names.iter().map(value).collect::<PyResult<_>>()?, fresh)
        }
        Err(error) => {
            let result = error.into_inner();
            let mapping = result.cast::<PyMapping>().map_err(|_| {
                let got = type_name(&result);
                PyTypeError::new_err(format!("expected a mapping of output names to arrays, got {got}"))
            })?;
            let value = |name| mapping.get_item(name).map_err(|_| missing(spec, name, mapping.as_any()));
            (names.iter().map(value).collect::<PyResult<_>>()?, false)
        }
    };
    spec.outputs.iter().zip(values).map(|(output, value)| whole(py, output, rows, value, fresh, promised)).collect()
}

fn missing(spec: &ModelSpec, name: &Py<PyAny>, result: &Bound<'_, PyAny>) -> PyErr {
    let expected: Vec<&str> = spec.outputs.iter().map(|output| output.name.as_str()).collect();
    let keys = result.try_iter().into_iter().flatten().flatten().take(NAMES_SHOWN);
    let mut got: Vec<String> = keys.map(|key| key.to_string().chars().take(NAME_SHOWN).collect()).collect();
    if got.is_empty() {
        got.push("nothing".to_owned());
    }
    PyValueError::new_err(format!(
        "output '{name}' is missing: expected {}, got {}",
        expected.join(", "),
        got.join(", ")
    ))
}

/// Of what a model returned under wrong names: enough to see what it meant.
const NAMES_SHOWN: usize = 8;
const NAME_SHOWN: usize = 64;

fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map(|name| name.to_string()).unwrap_or_else(|_| "an object".to_owned())
}

/// One output, checked. `fresh`: the dictionary it came in was made for this call and is known to nobody else.
/// `promised`: the backend never touches memory that it has returned.
fn whole(
    py: Python<'_>,
    output: &TensorSpec,
    rows: Option<u32>,
    value: Bound<'_, PyAny>,
    fresh: bool,
    promised: bool,
) -> PyResult<Whole> {
    let numpy = NumPy::get(py)?;
    let array = if value.is_exact_instance(numpy.ndarray(py)) { value } else { as_array(py, value)? };
    if output.datatype == DataType::Bytes {
        return elements(output, rows, &array);
    }
    if array.getattr("ndim")?.extract::<usize>()? == 0 {
        // A buffer without dimensions has no shape to read; the element itself is as good as a row of one.
        let row = array.call_method1("reshape", (1,))?;
        let output_of_one = TensorSpec { dims: vec![1], ..output.clone() };
        let whole = whole(py, &output_of_one, None, row, false, false)?;
        check_shape(output, rows, &[])?;
        return Ok(Whole { shape: Shape::new(), ..whole });
    }
    let Ok(buffer) = PyUntypedBuffer::get(&array) else { return Err(wrong_type(output, &array)) };
    if !buffer.is_c_contiguous() {
        let array = py.import("numpy")?.call_method1("ascontiguousarray", (&array,))?;
        return whole(py, output, rows, array, true, false);
    }
    if !holds(buffer.format().to_bytes(), buffer.item_size(), output.datatype) {
        return Err(wrong_type(output, &array));
    }
    let shape: Shape = buffer.shape().iter().map(|&size| size as i64).collect();
    check_shape(output, rows, &shape)?;
    let length = buffer.len_bytes();
    let start = buffer.buf_ptr().cast::<u8>().cast_const();
    // Gives its reference to the array back, which `sole` would count.
    drop(buffer);
    let content = if length == 0 {
        Bytes::new()
    } else if length > COPY_BYTES && fresh && sole(&array, promised)? {
        Bytes::from_owner(Kept { start, length, _array: array.unbind() })
    } else {
        // SAFETY: a contiguous array of `length` bytes that `array` keeps alive; the GIL keeps Python code from changing it.
        Bytes::copy_from_slice(unsafe { std::slice::from_raw_parts(start, length) })
    };
    Ok(Whole { shape, datatype: output.datatype, content: Content::Flat(content) })
}

fn wrong_type(output: &TensorSpec, array: &Bound<'_, PyAny>) -> PyErr {
    let got = array.getattr("dtype").map(|dtype| dtype.to_string()).unwrap_or_default();
    PyTypeError::new_err(format!("output '{}': expected {}, got {got}", output.name, output.datatype))
}

/// Whatever speaks DLPack, the buffer protocol or `__array__`, or is a list, as a NumPy array.
pub fn as_array<'py>(py: Python<'py>, value: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let numpy = py.import("numpy")?;
    let subclass = value.is_instance(NumPy::get(py)?.ndarray(py))?;
    if !subclass
        && value.hasattr("__dlpack__")?
        && let Ok(array) = numpy.call_method1("from_dlpack", (&value,))
    {
        return Ok(array);
    }
    numpy.call_method1("asarray", (value,))
}

/// Whether this array is the only way to its memory. Otherwise the model could write to it while it is being sent.
///
/// An array that owns its memory is, when ours is the only reference to it. Counts say nothing about memory behind
/// another object (a capsule, a foreign tensor): there the backend has to promise it.
fn sole(array: &Bound<'_, PyAny>, promised: bool) -> PyResult<bool> {
    // The dictionary that the array came in is gone by now.
    const OURS: isize = 1;
    Ok(references(array) == OURS && (promised || array.getattr("base")?.is_none()))
}

fn references(object: &Bound<'_, PyAny>) -> isize {
    // SAFETY: a bound object is alive, and reading its count needs no more than the GIL.
    unsafe { pyo3::ffi::Py_REFCNT(object.as_ptr()) }
}

/// Whether a buffer's item format (PEP 3118) is the data type. BF16 has no format and travels as UINT16.
pub fn holds(format: &[u8], size: usize, datatype: DataType) -> bool {
    let code = match format {
        [code] | [b'@' | b'=' | b'<', code] => *code,
        _ => return false,
    };
    let kind: &[u8] = match datatype {
        DataType::Bool => b"?",
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 | DataType::Uint64 | DataType::Bf16 => b"BHILQN",
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => b"bhilqn",
        DataType::Fp16 => b"e",
        DataType::Fp32 => b"f",
        DataType::Fp64 => b"d",
        DataType::Bytes => return false,
    };
    kind.contains(&code) && Some(size) == datatype.size()
}

pub fn check_shape(output: &TensorSpec, rows: Option<u32>, shape: &[i64]) -> PyResult<()> {
    let batch = rows.map(i64::from);
    let expected = batch.into_iter().chain(output.dims.iter().copied());
    let fits = shape.len() == output.dims.len() + usize::from(rows.is_some())
        && expected.clone().zip(shape).all(|(expected, &got)| expected < 0 || expected == got);
    if fits {
        return Ok(());
    }
    let expected: Vec<i64> = expected.collect();
    Err(PyValueError::new_err(format!("output '{}': expected shape {expected:?}, got {shape:?}", output.name)))
}

/// Encodes an array of bytes or text: each element after its length.
fn elements(output: &TensorSpec, rows: Option<u32>, array: &Bound<'_, PyAny>) -> PyResult<Whole> {
    let shape: Shape =
        array.getattr("shape")?.cast::<PyTuple>()?.iter().map(|size| size.extract::<i64>()).collect::<PyResult<_>>()?;
    check_shape(output, rows, &shape)?;
    let (data, starts) = encode(array, || format!("output '{}'", output.name))?;
    Ok(Whole { shape, datatype: DataType::Bytes, content: Content::Elements { data, starts } })
}

/// The elements of an array of bytes or text, each after its length, and where each starts, and the end.
pub fn encode(array: &Bound<'_, PyAny>, what: impl Fn() -> String) -> PyResult<(Bytes, Vec<usize>)> {
    let list = array.call_method0("ravel")?.call_method0("tolist")?;
    let mut data = BytesMut::new();
    let mut starts = Vec::with_capacity(list.len()? + 1);
    for element in list.try_iter()? {
        let element = element?;
        starts.push(data.len());
        let mut put = |bytes: &[u8]| {
            let length = u32::try_from(bytes.len())
                .map_err(|_| PyValueError::new_err(format!("{}: an element is over 4 GiB", what())))?;
            data.put_u32_le(length);
            data.put_slice(bytes);
            Ok::<(), PyErr>(())
        };
        if let Ok(bytes) = element.cast::<PyBytes>() {
            put(bytes.as_bytes())?;
        } else if let Ok(text) = element.cast::<PyString>() {
            put(text.encode_utf8()?.as_bytes())?;
        } else {
            let message = format!("{}: expected elements of bytes or str, got {}", what(), type_name(&element));
            return Err(PyTypeError::new_err(message));
        }
    }
    starts.push(data.len());
    Ok((data.freeze(), starts))
}

/// The answer of the job whose rows begin at `first`. `wide` is the batch's size along the padded axis, if it has one.
pub fn part(spec: &ModelSpec, whole: &[Whole], job: &Job, first: usize, wide: Option<i64>) -> Outputs {
    whole.iter().enumerate().map(|(index, output)| output.part(spec, index, job, first, wide)).collect()
}

impl Whole {
    fn part(&self, spec: &ModelSpec, index: usize, job: &Job, first: usize, wide: Option<i64>) -> Tensor {
        let mut shape = self.shape.clone();
        if spec.max_batch_size > 0 {
            shape[0] = i64::from(job.rows);
        }
        let elements = |shape: &[i64]| shape.iter().product::<i64>() as usize;
        let row = elements(&shape[usize::from(spec.max_batch_size > 0)..]);
        let (from, to) = (first * row, first * row + elements(&shape));
        let data = match &self.content {
            Content::Flat(data) => {
                let size = self.datatype.size().unwrap_or(1);
                data.slice(from * size..to * size)
            }
            Content::Elements { data, starts } => data.slice(starts[from]..starts[to]),
        };
        let tensor = Tensor::new(self.datatype, shape, data);
        match cut_size(spec, index, job, wide, &tensor) {
            Some((axis, size)) => cut(tensor, axis, size),
            None => tensor,
        }
    }
}

/// The axis and size to which an output of a padded batch is cut back, if it has to be.
fn cut_size(spec: &ModelSpec, index: usize, job: &Job, wide: Option<i64>, tensor: &Tensor) -> Option<(usize, i64)> {
    let rule = spec.padding.as_ref()?.outputs.iter().find(|rule| rule.output == index)?;
    if job.extent >= wide? {
        return None;
    }
    let size = (job.extent + rule.divisor - 1) / rule.divisor;
    let now = *tensor.shape.get(rule.axis)?;
    (size < now && tensor.datatype.size().is_some()).then_some((rule.axis, size))
}

fn cut(tensor: Tensor, axis: usize, size: i64) -> Tensor {
    let item = tensor.datatype.size().unwrap_or(1);
    let inner = tensor.shape[axis + 1..].iter().product::<i64>() as usize * item;
    let (from, to) = (inner * tensor.shape[axis] as usize, inner * size as usize);
    let mut data = BytesMut::with_capacity(tensor.data.len() / from.max(1) * to);
    for line in tensor.data.chunks_exact(from.max(1)) {
        data.put_slice(&line[..to]);
    }
    let mut shape = tensor.shape;
    shape[axis] = size;
    Tensor::new(tensor.datatype, shape, data.freeze())
}
