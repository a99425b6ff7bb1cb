//! The statistics of `cargo bench --bench soak`, which has no tests of its own: it has to tell a leak from noise.

#[path = "bench/soak/trend.rs"]
mod trend;

use proptest::prelude::*;

use self::trend::Trend;

/// Noise without a trend, the same in each run: between -1 and 1.
fn noise(n: usize) -> f64 {
    let mut state = n as u64 + 1;
    // SplitMix64's finaliser: neighbours have nothing in common.
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
}

#[test]
fn a_trend_says_what_there_is() {
    let trend = Trend::of(&[3.0, 5.0, 7.0, 9.0]).unwrap();
    assert_eq!((trend.first, trend.median, trend.last), (3.0, 6.0, 9.0));
    assert_eq!((trend.min, trend.max, trend.slope), (3.0, 9.0, 2.0));
    assert!(!trend.is_constant());
    assert_eq!(Trend::of(&[]), None);
}

#[test]
fn a_constant_is_flat() {
    for rounds in [1, 2, 60, 1000] {
        let trend = Trend::of(&vec![7.0; rounds]).unwrap();
        assert!(trend.is_constant());
        assert_eq!((trend.low, trend.slope, trend.high), (0.0, 0.0, 0.0));
    }
}

#[test]
fn noise_is_no_growth() {
    for rounds in [10, 60, 1000, 5000] {
        let values: Vec<f64> = (0..rounds).map(|n| 100.0 + 20.0 * noise(n)).collect();
        let trend = Trend::of(&values).unwrap();
        assert!(trend.low <= 0.0 && trend.high >= 0.0, "{rounds} rounds: {trend:?}");
    }
}

#[test]
fn growth_far_below_the_noise_is_found() {
    let values: Vec<f64> = (0..1000).map(|n| 100.0 + 20.0 * noise(n) + 0.02 * n as f64).collect();
    let trend = Trend::of(&values).unwrap();
    assert!(trend.low > 0.0, "{trend:?}");
    assert!((0.015..0.025).contains(&trend.slope), "{trend:?}");
}

/// One page more now and then is how a small leak looks from outside.
#[test]
fn rare_steps_are_growth() {
    let values: Vec<f64> = (0..1000).map(|n| f64::from(n / 200) * 4.0).collect();
    let trend = Trend::of(&values).unwrap();
    assert!(trend.low > 0.0, "{trend:?}");
}

#[test]
fn a_few_outliers_change_nothing() {
    let values: Vec<f64> = (0..1000).map(|n| if n % 10 == 9 { 1e6 * n as f64 } else { 100.0 + noise(n) }).collect();
    let trend = Trend::of(&values).unwrap();
    assert!(trend.slope.abs() < 0.01, "{trend:?}");
}

proptest! {
    #[test]
    fn the_slope_lies_in_its_interval(values in proptest::collection::vec(-1e6_f64..1e6, 1..300)) {
        let trend = Trend::of(&values).unwrap();
        prop_assert!(trend.low <= trend.slope && trend.slope <= trend.high, "{trend:?}");
    }

    #[test]
    fn a_line_has_its_own_slope(rise in -100.0_f64..100.0, rounds in 2_usize..1200) {
        let values: Vec<f64> = (0..rounds).map(|n| rise * n as f64).collect();
        let trend = Trend::of(&values).unwrap();
        prop_assert!((trend.slope - rise).abs() < 1e-6, "{trend:?}");
    }
}
