//! Tensor elements as bytes: how many a shape holds, how many bytes they take, where BYTES elements end.

use penstock_schema::DataType;

/// Length of the prefix of each BYTES element.
pub(crate) const LENGTH_BYTES: usize = 4;

/// Elements of a shape; `None` when the product leaves `usize`. A zero does not excuse an overflow beside it.
pub(crate) fn count(shape: &[i64]) -> Option<usize> {
    let product =
        shape.iter().try_fold(1usize, |product, &size| product.checked_mul(usize::try_from(size).ok()?.max(1)))?;
    Some(if shape.contains(&0) { 0 } else { product })
}

/// Does `data` hold exactly what `shape` promises? The problem is a sentence without its subject.
pub(crate) fn check(datatype: DataType, shape: &[i64], data: &[u8]) -> Result<(), String> {
    check_length(datatype, shape, data.len() as u64)?;
    match (datatype.size(), count(shape)) {
        (None, Some(count)) => check_bytes(count, data),
        _ => Ok(()),
    }
}

/// What can be said of that many bytes before they are there; of BYTES, whose elements say how long they are, nothing.
pub(crate) fn check_length(datatype: DataType, shape: &[i64], length: u64) -> Result<(), String> {
    let too_large = || format!("shape {shape:?} holds more elements than fit in memory");
    let count = count(shape).ok_or_else(too_large)?;
    let Some(size) = datatype.size() else {
        return Ok(());
    };
    let expected = count.checked_mul(size).ok_or_else(too_large)?;
    if length != expected as u64 {
        let each = size as u64;
        let got = match length % each {
            0 => format!("{} elements ({length} bytes)", length / each),
            _ => format!("{length} bytes"),
        };
        return Err(format!(
            "expected {count} elements of {datatype} ({expected} bytes) for shape {shape:?}, got {got}"
        ));
    }
    Ok(())
}

fn check_bytes(count: usize, data: &[u8]) -> Result<(), String> {
    let mut rest = data;
    let mut found = 0usize;
    while !rest.is_empty() {
        let offset = data.len() - rest.len();
        let (prefix, behind) = rest.split_first_chunk::<LENGTH_BYTES>().ok_or_else(|| {
            format!("BYTES element {found}: expected a 4-byte length at byte {offset}, got {} bytes", rest.len())
        })?;
        let length = u32::from_le_bytes(*prefix) as usize;
        rest = behind.get(length..).ok_or_else(|| {
            format!(
                "BYTES element {found}: its length says {length} bytes, but {} are left behind byte {offset}",
                behind.len()
            )
        })?;
        found += 1;
    }
    if found != count {
        return Err(format!("expected {count} BYTES elements, got {found}"));
    }
    Ok(())
}

/// Appends one BYTES element. `None` when it is longer than its prefix can say.
pub(crate) fn push_bytes(data: &mut Vec<u8>, element: &[u8]) -> Option<()> {
    data.extend_from_slice(&u32::try_from(element.len()).ok()?.to_le_bytes());
    data.extend_from_slice(element);
    Some(())
}

/// The BYTES elements of data that [`check`] has passed.
pub(crate) fn split(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let (prefix, behind) = rest.split_first_chunk::<LENGTH_BYTES>()?;
        let (element, behind) = behind.split_at_checked(u32::from_le_bytes(*prefix) as usize)?;
        rest = behind;
        Some(element)
    })
}
