//! Memory that Rust fills without the GIL and Python sees as a buffer.
//!
//! An instance keeps one block per input and lends it to a [`Slab`], a Python object, for each batch. NumPy arrays made
//! over the slab keep it alive, and the slab keeps the block's count up: `Arc::get_mut` gives the block back for writing
//! only when nothing that was made from it is left, whatever the model kept or returned.

use bytes::{Bytes, BytesMut};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::Arc;

/// What vector units and libraries want tensors to start at.
pub const ALIGNMENT: usize = 64;

/// An aligned allocation, uninitialised until written.
pub struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a Block owns its memory like a Box<[u8]>; nothing about it is tied to a thread.
unsafe impl Send for Block {}
// SAFETY: a shared reference gives out the address and size only; Rust writes through `&mut` alone.
unsafe impl Sync for Block {}

impl Block {
    pub fn new(capacity: usize) -> Option<Block> {
        let layout = Layout::from_size_align(capacity.max(ALIGNMENT), ALIGNMENT).ok()?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        Some(Block { start, layout })
    }

    pub fn capacity(&self) -> usize {
        self.layout.size()
    }

    /// The first `length` bytes, for writing.
    pub fn bytes_mut(&mut self, length: usize) -> &mut [std::mem::MaybeUninit<u8>] {
        assert!(length <= self.capacity(), "a block of {} bytes has no {length}", self.capacity());
        // SAFETY: the memory is ours, `length` is inside it, and `&mut self` makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), length) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Memory of an instance, lent for its batches: a Python buffer that stays exported, and so where it is, while anything
/// refers to it.
pub struct Lent {
    start: NonNull<u8>,
    length: usize,
    _buffer: PyUntypedBuffer,
}

// SAFETY: the address and size of a buffer that is kept exported; neither is tied to a thread.
unsafe impl Send for Lent {}
// SAFETY: a shared reference gives out the address and size only.
unsafe impl Sync for Lent {}

impl Lent {
    /// Error: ValueError for a buffer that is read-only, empty or in pieces.
    pub fn new(buffer: &Bound<'_, PyAny>) -> PyResult<Lent> {
        let buffer = PyUntypedBuffer::get(buffer)?;
        let length = buffer.len_bytes();
        match NonNull::new(buffer.buf_ptr().cast()) {
            Some(start) if length > 0 && !buffer.readonly() && buffer.is_c_contiguous() => {
                Ok(Lent { start, length, _buffer: buffer })
            }
            _ => {
                Err(PyValueError::new_err("memory of an input: expected a writable contiguous buffer with bytes in it"))
            }
        }
    }

    pub fn length(&self) -> usize {
        self.length
    }

    /// The first `length` bytes, for writing.
    ///
    /// # Safety
    /// Nothing else reads or writes them while the slice lives.
    #[allow(clippy::mut_from_ref)] // The memory is behind a pointer; who calls promises that this is the only way to it.
    pub unsafe fn bytes_mut(&self, length: usize) -> &mut [std::mem::MaybeUninit<u8>] {
        assert!(length <= self.length, "{} lent bytes have no {length}", self.length);
        // SAFETY: the buffer holds them while it is exported, and the caller promises that this is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), length) }
    }
}

enum Memory {
    Block {
        block: Arc<Block>,
        length: usize,
    },
    Lent {
        lent: Arc<Lent>,
        length: usize,
    },
    /// The body of a request, passed on as it came: held by nobody else. The address was taken from a mutable borrow,
    /// so it may be written through.
    Body {
        start: NonNull<u8>,
        body: BytesMut,
    },
    /// An answer, which others may hold, too: read-only.
    Answer(Bytes),
}

// SAFETY: the pointer is to memory that the BytesMut beside it owns; neither is tied to a thread.
unsafe impl Send for Memory {}
// SAFETY: a shared reference gives out the address and size only.
unsafe impl Sync for Memory {}

/// A buffer for NumPy: one dimension of bytes, writable unless it is an answer.
#[pyclass(frozen, module = "penstock._core")]
pub struct Slab {
    memory: Memory,
}

impl Slab {
    pub fn block(block: Arc<Block>, length: usize) -> Slab {
        Slab { memory: Memory::Block { block, length } }
    }

    pub fn lent(lent: Arc<Lent>, length: usize) -> Slab {
        Slab { memory: Memory::Lent { lent, length } }
    }

    pub fn body(mut body: BytesMut) -> Slab {
        let start = NonNull::from(body.as_mut()).cast();
        Slab { memory: Memory::Body { start, body } }
    }

    pub fn answer(bytes: Bytes) -> Slab {
        Slab { memory: Memory::Answer(bytes) }
    }

    fn address(&self) -> (*mut u8, usize) {
        match &self.memory {
            Memory::Block { block, length } => (block.start.as_ptr(), *length),
            Memory::Lent { lent, length } => (lent.start.as_ptr(), *length),
            Memory::Body { start, body } => (start.as_ptr(), body.len()),
            Memory::Answer(bytes) => (bytes.as_ptr().cast_mut(), bytes.len()),
        }
    }
}

#[pymethods]
impl Slab {
    // SAFETY: called by Python with a valid view to fill; the pointers put into it live as long as the slab, to which the
    // view holds a reference (PyBuffer_FillInfo takes it).
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view to fill"));
        }
        let (start, length) = slf.get().address();
        let length = ffi::Py_ssize_t::try_from(length).map_err(|_| PyBufferError::new_err("buffer too long"))?;
        let read_only = c_int::from(matches!(slf.get().memory, Memory::Answer(_)));
        // SAFETY: `view` is valid, `start` has `length` bytes, and the view says whether they may be written.
        let status = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start.cast(), length, read_only, flags) };
        if status != 0 { Err(PyErr::fetch(slf.py())) } else { Ok(()) }
    }

    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {}
}
