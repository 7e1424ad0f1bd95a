//! Headers of safetensors files: as bytes, and as JSON with a length that fits.
#![no_main]

use std::path::Path;

use hlrc::weights::safetensors::Header;
use hlrc::weights::{Defect, WeightsError};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check(data, data.len() as u64);
    let mut file = (data.len() as u64).to_le_bytes().to_vec();
    file.extend(data);
    let mut length = file.len() as u64;
    // The data that the header wants is not there: say that it is, and go on.
    for _ in 0..2 {
        match check(&file, length) {
            Some(Defect::DataTruncated { end, .. }) => {
                length = (file.len() as u64).saturating_add(end);
            }
            _ => break,
        }
    }
});

fn check(start: &[u8], length: u64) -> Option<Defect> {
    let path = Path::new("model.safetensors");
    let header = match Header::parse(path, start, length) {
        Ok(header) => header,
        Err(error) => {
            assert!(error.is_bad_input());
            assert!(!error.to_string().is_empty());
            return match error {
                WeightsError::Format { defect, .. } => Some(*defect),
                _ => None,
            };
        }
    };
    let mut at = header.data_start;
    for tensor in &header.tensors {
        assert_eq!(tensor.offset, at, "holes and overlaps are refused");
        assert_eq!(
            tensor.dtype.bytes_for_shape(&tensor.shape),
            Some(tensor.bytes)
        );
        at += tensor.bytes;
    }
    assert_eq!(at, length, "all of the file is accounted for");
    None
}
