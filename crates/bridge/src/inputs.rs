//! From the jobs of a batch to the arrays a model is called with.
//!
//! Two steps, since only the second needs the GIL: [`Gatherer::gather`] copies rows side by side into the instance's own
//! memory (or takes over the body of a single large request), [`arguments`] shows that memory to NumPy. An instance that
//! lends memory of its own, such as what a GPU copies from, gets the rows laid out there.

use crate::copying;
use crate::slab::{ALIGNMENT, Block, Lent, Slab};
use bytes::{Bytes, BytesMut};
use half::{bf16, f16};
use penstock_dispatch::Job;
use penstock_schema::{Axis, DataType, Error, ModelSpec, Result, Shape, Tensor};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple, PyType};
use std::mem::MaybeUninit;
use std::sync::Arc;

/// From here on a request is passed on rather than copied: a copy of this takes longer than the bookkeeping.
const PASS_ON_BYTES: usize = 32 << 10;

/// One input of a batch, ready to become an array.
pub enum Gathered {
    Absent,
    Block {
        block: Arc<Block>,
        length: usize,
        shape: Shape,
        datatype: DataType,
    },
    Lent {
        lent: Arc<Lent>,
        length: usize,
        shape: Shape,
        datatype: DataType,
    },
    Body {
        body: BytesMut,
        shape: Shape,
        datatype: DataType,
    },
    /// BYTES: elements become Python objects, so there is nothing to gather ahead.
    Elements {
        pieces: Vec<Bytes>,
        shape: Shape,
    },
}

impl Gathered {
    pub fn shape(&self) -> Option<&Shape> {
        match self {
            Gathered::Absent => None,
            Gathered::Block { shape, .. }
            | Gathered::Lent { shape, .. }
            | Gathered::Body { shape, .. }
            | Gathered::Elements { shape, .. } => Some(shape),
        }
    }
}

/// The reusable memory of one input of one instance.
pub struct Gatherer {
    input: usize,
    datatype: DataType,
    /// Every axis of this input that is padded.
    padding: Vec<Axis>,
    block: Option<Arc<Block>>,
    /// The instance's own memory, for batches that fit.
    lent: Option<Arc<Lent>>,
}

impl Gatherer {
    /// `lent` in the order of the inputs.
    pub fn all(spec: &ModelSpec, lent: Vec<Option<Lent>>) -> Vec<Gatherer> {
        let rules = spec.padding.as_ref().map(|padding| padding.inputs.as_slice()).unwrap_or_default();
        let padding = |input| rules.iter().filter(|rule| rule.input == input).cloned().collect();
        let gatherer = |((input, tensor), lent): ((usize, &penstock_schema::TensorSpec), Option<Lent>)| Gatherer {
            input,
            datatype: tensor.datatype,
            padding: padding(input),
            block: None,
            lent: lent.map(Arc::new),
        };
        spec.inputs.iter().enumerate().zip(lent).map(gatherer).collect()
    }

    /// Lays this input of all jobs into one piece of memory. The jobs' own references to it are given up.
    pub fn gather(&mut self, jobs: &mut [Job]) -> Result<Gathered> {
        let Some(first) = jobs.first().and_then(|job| job.inputs.get(self.input)?.as_ref()) else {
            return Ok(Gathered::Absent);
        };
        let mut shape = first.shape.clone();
        if jobs.len() > 1 {
            shape[0] = jobs.iter().map(|job| i64::from(job.rows)).sum();
        }
        for rule in &self.padding {
            let widest = jobs.iter().filter_map(|job| job.inputs[self.input].as_ref()?.shape.get(rule.axis)).max();
            shape[rule.axis] = widest.copied().unwrap_or(0).max(1);
            shape[rule.axis] += (rule.multiple - shape[rule.axis] % rule.multiple) % rule.multiple;
        }
        if self.datatype == DataType::Bytes {
            let pieces = jobs.iter().filter_map(|job| Some(job.inputs[self.input].as_ref()?.data.clone())).collect();
            return Ok(Gathered::Elements { pieces, shape });
        }
        let tensors = || jobs.iter().filter_map(|job| job.inputs[self.input].as_ref());
        let padded = !self.padding.is_empty() && tensors().any(|tensor| tensor.shape[1..] != shape[1..]);
        let length = byte_length(&shape, self.datatype)?;
        let lent = self.lent.as_ref().filter(|lent| length <= lent.length());
        // What is lent has to be copied to by somebody, and here it is done without the GIL.
        if let ([job], false, None) = (&mut *jobs, padded, lent)
            && let Some(body) = take_over(&mut job.inputs[self.input])
        {
            return Ok(Gathered::Body { body, shape, datatype: self.datatype });
        }
        let filler = self.padding.first().filter(|_| padded).map(|rule| rule.value);
        let input = self.input;
        let tensors = jobs.iter().filter_map(|job| job.inputs[input].as_ref());
        self.laid(shape, length, filler, tensors)
    }

    /// What a job has for this input.
    pub fn of<'a>(&self, job: &'a Job) -> Option<&'a Tensor> {
        job.inputs.get(self.input)?.as_ref()
    }

    /// The rows of these, one after the other; shapes are equal but for the rows.
    pub fn gather_tensors(&mut self, tensors: &[&Tensor]) -> Result<Gathered> {
        let Some(first) = tensors.first() else { return Ok(Gathered::Absent) };
        let mut shape = first.shape.clone();
        if tensors.len() > 1 {
            shape[0] = tensors.iter().filter_map(|tensor| tensor.shape.first()).sum();
        }
        let length = byte_length(&shape, self.datatype)?;
        self.laid(shape, length, None, tensors.iter().copied())
    }

    /// Copies tensors into what is lent, if they fit, or into the block. `filler`: what they are padded with.
    fn laid<'a>(
        &mut self,
        shape: Shape,
        length: usize,
        filler: Option<f64>,
        tensors: impl Iterator<Item = &'a Tensor>,
    ) -> Result<Gathered> {
        let lent = self.lent.as_ref().filter(|lent| length <= lent.length());
        let memory = match lent {
            // SAFETY: whoever lent it has read it by the time `execute` returns, and this thread calls `execute`.
            Some(lent) => unsafe { lent.bytes_mut(length) },
            None => writable(&mut self.block, length)?.bytes_mut(length),
        };
        match filler {
            Some(value) => pad(memory, &shape, self.datatype, value, tensors)?,
            None => concatenate(memory, tensors)?,
        }
        if let Some(lent) = lent {
            return Ok(Gathered::Lent { lent: lent.clone(), length, shape, datatype: self.datatype });
        }
        let block = self.block.clone().ok_or_else(|| Error::internal("no memory for a batch"))?;
        Ok(Gathered::Block { block, length, shape, datatype: self.datatype })
    }
}

/// A block that nothing else refers to, with room for `length` bytes; a new one if the old is still in use somewhere.
fn writable(slot: &mut Option<Arc<Block>>, length: usize) -> Result<&mut Block> {
    let usable = slot.as_mut().is_some_and(|block| block.capacity() >= length && Arc::get_mut(block).is_some());
    if !usable {
        let capacity = length.checked_next_power_of_two().unwrap_or(length);
        *slot = Some(Arc::new(
            Block::new(capacity).ok_or_else(|| Error::too_large(format!("a batch of {length} bytes is too large")))?,
        ));
    }
    slot.as_mut().and_then(Arc::get_mut).ok_or_else(|| Error::internal("no memory for a batch"))
}

/// The tensor's own memory, if it is worth it, aligned, and held by nobody else.
fn take_over(slot: &mut Option<Tensor>) -> Option<BytesMut> {
    let tensor = slot.as_mut()?;
    if tensor.data.len() < PASS_ON_BYTES || !(tensor.data.as_ptr() as usize).is_multiple_of(ALIGNMENT) {
        return None;
    }
    match std::mem::take(&mut tensor.data).try_into_mut() {
        Ok(body) => Some(body),
        Err(shared) => {
            tensor.data = shared;
            None
        }
    }
}

fn byte_length(shape: &[i64], datatype: DataType) -> Result<usize> {
    let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(usize::try_from(size).ok()?));
    elements
        .and_then(|count| count.checked_mul(datatype.size().unwrap_or(1)))
        .ok_or_else(|| Error::too_large(format!("a batch of shape {shape:?} is too large")))
}

fn concatenate<'a>(mut memory: &mut [MaybeUninit<u8>], tensors: impl Iterator<Item = &'a Tensor>) -> Result<()> {
    let copiers = copying::copiers(memory.len());
    let mut pieces = Vec::new();
    for tensor in tensors {
        let (mine, rest) = memory.split_at_mut_checked(tensor.data.len()).ok_or_else(uneven)?;
        if copiers > 1 {
            pieces.push((mine, &tensor.data[..]));
        } else {
            mine.write_copy_of_slice(&tensor.data);
        }
        memory = rest;
    }
    if !memory.is_empty() {
        return Err(uneven());
    }
    copying::together(copiers, pieces);
    Ok(())
}

/// The rows of a batch must fill it exactly; anything else means that unequal shapes were put together.
fn uneven() -> Error {
    Error::internal("requests of unequal shapes were put into one batch")
}

/// As [`concatenate`], but every tensor is filled up to the batch's size along the padded axes.
fn pad<'a>(
    mut memory: &mut [MaybeUninit<u8>],
    shape: &[i64],
    datatype: DataType,
    value: f64,
    tensors: impl Iterator<Item = &'a Tensor>,
) -> Result<()> {
    let filler = filler(value, datatype);
    for element in memory.chunks_exact_mut(filler.len()) {
        element.write_copy_of_slice(&filler);
    }
    let row = byte_length(&shape[1..], datatype)?;
    for tensor in tensors {
        let mut to = Shape::from_slice(shape);
        to[0] = tensor.shape[0];
        let length = row * usize::try_from(to[0]).map_err(|_| uneven())?;
        let (mine, rest) = memory.split_at_mut_checked(length).ok_or_else(uneven)?;
        place(mine, &to, &tensor.data, &tensor.shape, datatype)?;
        memory = rest;
    }
    if memory.is_empty() { Ok(()) } else { Err(uneven()) }
}

/// Copies an array of shape `from` into the low corner of one of shape `to`.
fn place(target: &mut [MaybeUninit<u8>], to: &[i64], source: &[u8], from: &[i64], datatype: DataType) -> Result<()> {
    let ([_, to_inner @ ..], [count, from_inner @ ..]) = (to, from) else { return Err(uneven()) };
    if to_inner == from_inner {
        target.get_mut(..source.len()).ok_or_else(uneven)?.write_copy_of_slice(source);
        return Ok(());
    }
    let (wide, narrow) = (byte_length(to_inner, datatype)?, byte_length(from_inner, datatype)?);
    for index in 0..usize::try_from(*count).map_err(|_| uneven())? {
        let target = target.get_mut(index * wide..(index + 1) * wide).ok_or_else(uneven)?;
        let source = source.get(index * narrow..(index + 1) * narrow).ok_or_else(uneven)?;
        place(target, to_inner, source, from_inner, datatype)?;
    }
    Ok(())
}

/// One element of padding in the tensor's own type.
fn filler(value: f64, datatype: DataType) -> Vec<u8> {
    match datatype {
        DataType::Fp64 => value.to_le_bytes().to_vec(),
        DataType::Fp32 => (value as f32).to_le_bytes().to_vec(),
        DataType::Bf16 => bf16::from_f64(value).to_le_bytes().to_vec(),
        DataType::Fp16 => f16::from_f64(value).to_le_bytes().to_vec(),
        _ => (value as i64).to_le_bytes()[..datatype.size().unwrap_or(1)].to_vec(),
    }
}

/// The Python objects that arrays are made with, looked up once.
pub struct NumPy {
    ndarray: Py<PyType>,
    dtypes: Vec<Py<PyAny>>,
    empty: Py<PyAny>,
}

impl NumPy {
    pub fn get(py: Python<'_>) -> PyResult<&'static NumPy> {
        static NUMPY: PyOnceLock<NumPy> = PyOnceLock::new();
        NUMPY.get_or_try_init(py, || {
            let numpy = py.import("numpy")?;
            let dtype = |datatype| numpy.getattr("dtype")?.call1((dtype_name(datatype),)).map(Bound::unbind);
            Ok(NumPy {
                ndarray: numpy.getattr("ndarray")?.cast_into::<PyType>()?.unbind(),
                dtypes: DataType::ALL.into_iter().map(dtype).collect::<PyResult<_>>()?,
                empty: numpy.getattr("empty")?.unbind(),
            })
        })
    }

    pub fn ndarray<'py>(&self, py: Python<'py>) -> &Bound<'py, PyType> {
        self.ndarray.bind(py)
    }

    pub fn view<'py>(
        &self,
        py: Python<'py>,
        slab: Slab,
        shape: &[i64],
        datatype: DataType,
    ) -> PyResult<Bound<'py, PyAny>> {
        let dtype = &self.dtypes[datatype as usize];
        self.ndarray.bind(py).call1((PyTuple::new(py, shape)?, dtype, Bound::new(py, slab)?))
    }

    pub fn objects<'py>(&self, py: Python<'py>, pieces: &[Bytes], shape: &[i64]) -> PyResult<Bound<'py, PyAny>> {
        let elements = PyList::empty(py);
        for piece in pieces {
            let mut rest = &piece[..];
            while let Some((length, tail)) = rest.split_first_chunk::<4>() {
                let length = u32::from_le_bytes(*length) as usize;
                elements.append(PyBytes::new(py, tail.get(..length).unwrap_or(tail)))?;
                rest = tail.get(length..).unwrap_or_default();
            }
        }
        let array = self.empty.bind(py).call1((elements.len(), &self.dtypes[DataType::Bytes as usize]))?;
        array.set_item(pyo3::types::PySlice::full(py), elements)?;
        array.call_method1("reshape", (PyTuple::new(py, shape)?,))
    }
}

/// NumPy's name of the type in which a data type travels.
fn dtype_name(datatype: DataType) -> &'static str {
    match datatype {
        DataType::Bool => "bool",
        DataType::Uint8 => "uint8",
        DataType::Uint16 | DataType::Bf16 => "uint16",
        DataType::Uint32 => "uint32",
        DataType::Uint64 => "uint64",
        DataType::Int8 => "int8",
        DataType::Int16 => "int16",
        DataType::Int32 => "int32",
        DataType::Int64 => "int64",
        DataType::Fp16 => "float16",
        DataType::Fp32 => "float32",
        DataType::Fp64 => "float64",
        DataType::Bytes => "object",
    }
}

/// The dictionary a model is called with; absent inputs are left out.
pub fn arguments<'py>(py: Python<'py>, names: &[Py<PyAny>], gathered: Vec<Gathered>) -> PyResult<Bound<'py, PyDict>> {
    let arguments = PyDict::new(py);
    for (name, input) in names.iter().zip(gathered) {
        if let Some(array) = array(py, input)? {
            arguments.set_item(name, array)?;
        }
    }
    Ok(arguments)
}

/// One input as an array; none where it is absent.
pub fn array<'py>(py: Python<'py>, input: Gathered) -> PyResult<Option<Bound<'py, PyAny>>> {
    let numpy = NumPy::get(py)?;
    let array = match input {
        Gathered::Absent => return Ok(None),
        Gathered::Block { block, length, shape, datatype } => {
            numpy.view(py, Slab::block(block, length), &shape, datatype)?
        }
        Gathered::Lent { lent, length, shape, datatype } => {
            numpy.view(py, Slab::lent(lent, length), &shape, datatype)?
        }
        Gathered::Body { body, shape, datatype } => numpy.view(py, Slab::body(body), &shape, datatype)?,
        Gathered::Elements { pieces, shape } => numpy.objects(py, &pieces, &shape)?,
    };
    Ok(Some(array))
}
