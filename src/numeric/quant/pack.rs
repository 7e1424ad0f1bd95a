//! Rows of codes as little-endian bit streams.

/// Bytes of `count` packed codes: `ceil(count * bits / 8)`.
pub fn packed_len(bits: u8, count: usize) -> usize {
    // Split, so that a huge count can't overflow.
    (count / 8).saturating_mul(usize::from(bits)) + (count % 8 * usize::from(bits)).div_ceil(8)
}

/// Packs codes of 2, 3, 4 or 8 bits into `out`, low bits first.
///
/// `out` must hold [`packed_len`] bytes; unused bits of the last are zero.
/// Higher bits of a code are ignored.
pub fn pack_row(bits: u8, codes: &[u8], out: &mut [u8]) {
    pack_row_body(bits, codes, out);
}

#[inline(always)]
pub(super) fn pack_row_body(bits: u8, codes: &[u8], out: &mut [u8]) {
    match bits {
        8 => {
            for (o, &c) in out.iter_mut().zip(codes) {
                *o = c;
            }
        }
        4 => {
            let (pairs, rest) = codes.as_chunks::<2>();
            for (o, pair) in out.iter_mut().zip(pairs) {
                let pair = u16::from_le_bytes(*pair) & 0x0f0f;
                *o = (pair | pair >> 4) as u8;
            }
            if let ([last], Some(o)) = (rest, out.get_mut(pairs.len())) {
                *o = last & 15;
            }
        }
        2 => {
            let (quads, rest) = codes.as_chunks::<4>();
            for (o, q) in out.iter_mut().zip(quads) {
                let q = u32::from_le_bytes(*q) & 0x0303_0303;
                *o = (q | q >> 6 | q >> 12 | q >> 18) as u8;
            }
            if let (false, Some(o)) = (rest.is_empty(), out.get_mut(quads.len())) {
                *o = rest
                    .iter()
                    .enumerate()
                    .fold(0, |byte, (i, c)| byte | (c & 3) << (2 * i));
            }
        }
        _ => {
            let (eights, rest) = codes.as_chunks::<8>();
            let (whole, tail) = out.split_at_mut((3 * eights.len()).min(out.len()));
            for (o, eight) in whole.as_chunks_mut::<3>().0.iter_mut().zip(eights) {
                let [a, b, c, ..] = pack_three(*eight);
                *o = [a, b, c];
            }
            let mut eight = [0; 8];
            eight[..rest.len()].copy_from_slice(rest);
            for (o, byte) in tail.iter_mut().zip(pack_three(eight)) {
                *o = byte;
            }
        }
    }
}

/// Eight 3-bit codes in 24 bits: neighbours are joined, then pairs, then fours.
#[inline(always)]
fn pack_three(codes: [u8; 8]) -> [u8; 8] {
    let x = u64::from_le_bytes(codes) & 0x0707_0707_0707_0707;
    let x = (x | x >> 5) & 0x003f_003f_003f_003f;
    let x = (x | x >> 10) & 0x0000_0fff_0000_0fff;
    ((x | x >> 20) & 0x00ff_ffff).to_le_bytes()
}

/// Unpacks `out.len()` codes of 2, 3, 4 or 8 bits; undoes [`pack_row`].
pub fn unpack_row(bits: u8, packed: &[u8], out: &mut [u8]) {
    match bits {
        8 => {
            for (o, &p) in out.iter_mut().zip(packed) {
                *o = p;
            }
        }
        4 => {
            let (pairs, rest) = out.as_chunks_mut::<2>();
            for (pair, &p) in pairs.iter_mut().zip(packed) {
                let p = u16::from(p);
                *pair = ((p | p << 4) & 0x0f0f).to_le_bytes();
            }
            if let ([last], Some(&p)) = (rest, packed.get(pairs.len())) {
                *last = p & 15;
            }
        }
        _ => {
            let mask = ((1u32 << bits.min(8)) - 1) as u8;
            for (out, p) in out
                .chunks_mut(8)
                .zip(packed.chunks(usize::from(bits.max(1))))
            {
                let mut word = [0u8; 8];
                for (w, &p) in word.iter_mut().zip(p) {
                    *w = p;
                }
                let word = u64::from_le_bytes(word);
                for (i, o) in out.iter_mut().enumerate() {
                    *o = (word >> (i * usize::from(bits))) as u8 & mask;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn unpack_undoes_pack(bits in prop::sample::select(vec![2u8, 3, 4, 8]), codes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mask = if bits == 8 { 255 } else { (1u8 << bits) - 1 };
            let codes: Vec<u8> = codes.iter().map(|c| c & mask).collect();
            let mut packed = vec![0xffu8; packed_len(bits, codes.len())];
            pack_row(bits, &codes, &mut packed);
            let mut back = vec![0u8; codes.len()];
            unpack_row(bits, &packed, &mut back);
            prop_assert_eq!(&back, &codes);
            // The definition: code i occupies bits i*b.. of the little-endian stream.
            for (i, &c) in codes.iter().enumerate() {
                for k in 0..bits as usize {
                    let at = i * bits as usize + k;
                    prop_assert_eq!(packed[at / 8] >> (at % 8) & 1, c >> k & 1);
                }
            }
            // Padding is zero.
            for at in codes.len() * bits as usize..packed.len() * 8 {
                prop_assert_eq!(packed[at / 8] >> (at % 8) & 1, 0);
            }
        }
    }

    #[test]
    fn lengths() {
        assert_eq!(packed_len(3, 8), 3);
        assert_eq!(packed_len(3, 9), 4);
        assert_eq!(packed_len(4, 5), 3);
        assert_eq!(packed_len(2, 0), 0);
        assert_eq!(packed_len(8, 7), 7);
    }
}
