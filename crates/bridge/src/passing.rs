//! Arrays from Python into calls of models, and the answers back into arrays.

use crate::device_rows;
use crate::inputs::NumPy;
use crate::outputs::{COPY_BYTES, Kept, as_array, encode, holds};
use crate::slab::Slab;
use bytes::Bytes;
use penstock_schema::{DataType, Error, ModelSpec, Outputs, Result, Shape, Tensor, TensorSpec};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};

/// One input as a client would send it. `row`: without the batch dimension, which is added. An array over 64 KiB is held
/// and read later, and so is a tensor on a GPU; whoever passes it must not change it before the answer is there.
pub fn tensor(spec: &ModelSpec, name: &str, value: Bound<'_, PyAny>, row: bool) -> PyResult<Tensor> {
    let wanted = spec.input(name).map(|index| &spec.inputs[index]);
    let row = row && spec.max_batch_size > 0;
    if !value.is_exact_instance(NumPy::get(value.py())?.ndarray(value.py()))
        && let Some(tensor) = device_rows::taken(&value, row)?
    {
        return Ok(tensor);
    }
    let mut tensor = match wanted {
        Some(wanted) if wanted.datatype == DataType::Bytes => elements(wanted, value)?,
        _ => array(name, wanted, value)?,
    };
    if row {
        tensor.shape.insert(0, 1);
    }
    Ok(tensor)
}

/// Bytes or text, one or many.
fn elements(wanted: &TensorSpec, value: Bound<'_, PyAny>) -> PyResult<Tensor> {
    let py = value.py();
    let array = if value.is_exact_instance(NumPy::get(py)?.ndarray(py)) {
        value
    } else {
        let single = value.is_instance_of::<PyBytes>() || value.is_instance_of::<PyString>();
        // Not by NumPy's own text types, which drop zeros at the end.
        let objects = PyDict::new(py);
        objects.set_item("dtype", "object")?;
        let array = py.import("numpy")?.call_method("array", (value,), Some(&objects))?;
        // A model that takes one element in a dimension is called with one element.
        if single && wanted.dims == [1] { array.call_method1("reshape", (1,))? } else { array }
    };
    let (data, _) = encode(&array, || format!("input '{}'", wanted.name))?;
    Ok(Tensor::new(DataType::Bytes, shape_of(&array)?, data))
}

pub fn array(name: &str, wanted: Option<&TensorSpec>, value: Bound<'_, PyAny>) -> PyResult<Tensor> {
    let py = value.py();
    let mut array = if value.is_exact_instance(NumPy::get(py)?.ndarray(py)) { value } else { as_array(py, value)? };
    let shape = shape_of(&array)?;
    if shape.is_empty() {
        // A buffer without dimensions has no shape to read.
        array = array.call_method1("reshape", (1,))?;
    }
    let wanted = wanted.map(|wanted| wanted.datatype);
    if wanted == Some(DataType::Bf16) && array.getattr("dtype")?.getattr("name")?.extract::<String>()? == "bfloat16" {
        array = array.call_method1("view", ("uint16",))?;
    }
    let Ok(mut buffer) = PyUntypedBuffer::get(&array) else { return Err(no_type(name, &array)) };
    if !buffer.is_c_contiguous() {
        array = py.import("numpy")?.call_method1("ascontiguousarray", (&array,))?;
        buffer = PyUntypedBuffer::get(&array)?;
    }
    let is = |datatype: &DataType| holds(buffer.format().to_bytes(), buffer.item_size(), *datatype);
    // What the model takes comes first, since BF16 travels as UINT16.
    let datatype = wanted.filter(is).or_else(|| DataType::ALL.into_iter().find(is));
    let Some(datatype) = datatype else { return Err(no_type(name, &array)) };
    let (start, length) = (buffer.buf_ptr().cast::<u8>().cast_const(), buffer.len_bytes());
    drop(buffer);
    let data = if length > COPY_BYTES {
        Bytes::from_owner(Kept { start, length, _array: array.unbind() })
    } else if length > 0 {
        // SAFETY: a contiguous array of `length` bytes that `array` keeps alive; the GIL keeps Python code from changing it.
        Bytes::copy_from_slice(unsafe { std::slice::from_raw_parts(start, length) })
    } else {
        Bytes::new()
    };
    Ok(Tensor::new(datatype, shape, data))
}

pub fn shape_of(array: &Bound<'_, PyAny>) -> PyResult<Shape> {
    array.getattr("shape")?.cast::<PyTuple>()?.iter().map(|size| size.extract::<i64>()).collect()
}

fn no_type(name: &str, array: &Bound<'_, PyAny>) -> PyErr {
    let got = array.getattr("dtype").map(|dtype| dtype.to_string()).unwrap_or_default();
    PyTypeError::new_err(format!("input '{name}': an array of {got} can't be passed to a model"))
}

/// The name of the input at a position.
pub fn name_at(spec: &ModelSpec, position: usize) -> Result<&str> {
    spec.inputs.get(position).map(|input| input.name.as_str()).ok_or_else(|| {
        Error::invalid(format!(
            "model '{}' takes {} inputs, got at least {} without a name",
            spec.name,
            spec.inputs.len(),
            position + 1
        ))
    })
}

/// What a call gives: the only output, or all by name. `row`: without the batch dimension, which is one. What stayed on a
/// device is what the runtime made there.
pub fn answer<'py>(py: Python<'py>, spec: &ModelSpec, outputs: Outputs, row: bool) -> PyResult<Bound<'py, PyAny>> {
    let numpy = NumPy::get(py)?;
    let row = row && spec.max_batch_size > 0;
    let array = |tensor: Tensor| {
        if let Some(there) = &tensor.device {
            let found = device_rows::object(py, there)?;
            return if row { found.get_item(0) } else { Ok(found.clone()) };
        }
        let shape = &tensor.shape[usize::from(row)..];
        match tensor.datatype {
            DataType::Bytes => numpy.objects(py, &[tensor.data], shape),
            datatype => numpy.view(py, Slab::answer(tensor.data), shape, datatype),
        }
    };
    let mut outputs = outputs;
    if spec.outputs.len() == 1
        && let Some(only) = outputs.pop()
    {
        return array(only);
    }
    let all = PyDict::new(py);
    for (output, tensor) in spec.outputs.iter().zip(outputs) {
        all.set_item(&output.name, array(tensor)?)?;
    }
    Ok(all.into_any())
}
