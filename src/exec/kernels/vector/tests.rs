use super::*;

#[inline(always)]
#[allow(unsafe_code)]
fn all_operations<S: Vector>(s: S, x: &[f32; LANES], y: &[f32; LANES]) -> Vec<u32> {
    let (a, b) = (s.load_array(x), s.load_array(y));
    let bytes: [u8; 32] = std::array::from_fn(|i| (i * 37 % 120) as u8);
    // SAFETY: both read 32 bytes.
    let (bf16, f16) = unsafe { (s.load_bf16(bytes.as_ptr()), s.load_f16(bytes.as_ptr())) };
    let n = s.add(s.splat(3.0), s.splat(12_582_912.0));
    let results = [
        s.splat(x[3]),
        s.add(a, b),
        s.sub(a, b),
        s.mul(a, b),
        s.div(a, b),
        s.fma(a, b, a),
        s.max(a, b),
        s.min(a, b),
        s.select_less(a, b, b, a),
        s.copy_sign(a, b),
        s.add_exponent(a, n),
        bf16,
        f16,
        s.load_part(&x[..5]),
        s.splat(s.sum(a)),
        s.splat(s.largest(b)),
    ];
    let mut out: Vec<f32> = results.iter().flat_map(|&v| s.to_array(v)).collect();
    out.extend(s.transpose(results).iter().flat_map(|&v| s.to_array(v)));
    for add in [false, true] {
        let mut place = [0.5; 16 * 9];
        let rows = std::array::from_fn(|i| results[i]);
        // SAFETY: the last of 16 columns starts at 15 * 9 and has 8 values.
        unsafe { s.store_transposed(rows, place.as_mut_ptr(), 9, add) };
        out.extend(place);
    }
    out.into_iter().map(f32::to_bits).collect()
}

dispatch! {
    fn all_at(x: &[f32; LANES], y: &[f32; LANES]) -> Vec<u32> = all_operations;
}

#[test]
fn instruction_sets_agree_on_every_operation() {
    let x = std::array::from_fn(|i| (i as f32 * 1.37 - 9.1) * 1.1f32.powi(i as i32));
    let y = std::array::from_fn(|i| 0.3 - (i * i) as f32 * 0.017);
    let want = all_at(Isa(IsaKind::Baseline), &x, &y);
    assert_eq!(f32::from_bits(want[10 * LANES]), 8.0 * x[0]);
    for isa in Isa::available() {
        assert_eq!(all_at(isa, &x, &y), want, "{isa:?}");
    }
}
