//! Times as RFC 3339 in UTC, durations as `500ms`, `5s`, `1m30s`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::fmt::friendly::{Spacing, SpanPrinter};
use jiff::{SignedDuration, Timestamp};

/// The longest duration that is taken: more is a mistake, and far from where clocks overflow.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

const PRINTER: SpanPrinter = SpanPrinter::new().spacing(Spacing::None);

/// Reads a duration as people write it: `500ms`, `5s`, `1m 30s`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let signed: SignedDuration =
        text.parse().map_err(|_| "a duration has a number and a unit, such as 500ms, 5s or 2m".to_owned())?;
    match Duration::try_from(signed) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        Ok(_) => Err("a duration is a year at most".to_owned()),
        Err(_) => Err("a duration cannot be negative".to_owned()),
    }
}

/// The longest probation that an owner grants is a day, and without any time there is none.
pub(crate) fn of_a_probation(text: &str) -> Result<Duration, String> {
    match parse(text)? {
        Duration::ZERO => Err("it takes some time".to_owned()),
        duration if duration > DAY => Err("it is 24h at most".to_owned()),
        duration => Ok(duration),
    }
}

/// A duration, whole milliseconds.
pub(crate) fn duration(duration: Duration) -> String {
    let whole = Duration::from_millis(duration.as_millis().try_into().unwrap_or(u64::MAX));
    PRINTER.unsigned_duration_to_string(&whole)
}

/// A duration for people: without milliseconds where there are many seconds.
pub(crate) fn rough(exact: Duration) -> String {
    if exact < Duration::from_secs(10) { duration(exact) } else { duration(Duration::from_secs(exact.as_secs())) }
}

/// Unix time in milliseconds; `None` for 0, which an owner that does not tell leaves there.
pub(crate) fn timestamp(unix_ms: u64) -> Option<String> {
    let unix_ms = i64::try_from(unix_ms).ok().filter(|unix_ms| *unix_ms > 0)?;
    Some(format!("{:.3}", Timestamp::from_millisecond(unix_ms).ok()?))
}

/// The time of day in so many milliseconds, as the clock is set now.
pub(crate) fn after(ms: u64) -> Option<String> {
    timestamp(unix_ms().saturating_add(ms))
}

pub(crate) fn now() -> String {
    timestamp(unix_ms()).unwrap_or_default()
}

/// How long ago that was.
pub(crate) fn since(earlier_ms: u64) -> Duration {
    Duration::from_millis(unix_ms().saturating_sub(earlier_ms))
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("0s"), Ok(Duration::ZERO));
        for bad in ["", "5", "-5s", "soon", "400d", "9999999999999999h"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_probation_has_a_day() {
        assert_eq!(of_a_probation("24h"), Ok(DAY));
        assert!(["24h1ms", "0s", "soon"].into_iter().all(|text| of_a_probation(text).is_err()));
    }

    #[test]
    fn durations_and_times_are_written_as_the_contract_says() {
        assert_eq!(duration(Duration::from_millis(500)), "500ms");
        assert_eq!(duration(Duration::from_secs(5)), "5s");
        assert_eq!(duration(Duration::from_millis(90_250)), "1m30s250ms");
        assert_eq!(duration(Duration::ZERO), "0s");
        assert_eq!(timestamp(1_700_000_000_123).as_deref(), Some("2023-11-14T22:13:20.123Z"));
        assert_eq!(timestamp(0), None);
    }
}
