//! Bytes as text: digests, serial numbers, names drawn at random.

/// Lower-case hexadecimal, two digits a byte.
pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
