//! The matrix as it is printed: a line for each call of each side, a column for each fault.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::cell::Held;
use super::fault::Fault;
use super::point::{Point, Side};

/// What was run, and what came of it.
#[derive(Default)]
pub(crate) struct Table {
    fields: BTreeMap<(Side, &'static str, &'static str), Field>,
    columns: Vec<&'static str>,
    hows: BTreeMap<(&'static str, Side, &'static str), u32>,
    failures: Vec<String>,
    runs: u32,
}

#[derive(Default)]
struct Field {
    reached: u32,
    held: u32,
}

impl Table {
    pub(crate) fn add(&mut self, point: Point, fault: Fault, outcome: Result<Held, String>) {
        self.runs += 1;
        let column = fault.column();
        if !self.columns.contains(&column) {
            self.columns.push(column);
        }
        let field = self.fields.entry((point.side, point.call.name, column)).or_default();
        match outcome {
            Ok(Held::NotReached) => return,
            Ok(Held::Reached(how)) => {
                field.held += 1;
                *self.hows.entry((column, point.side, how)).or_default() += 1;
            }
            Err(what) => {
                let what = what.lines().collect::<Vec<_>>().join(" ");
                self.failures.push(format!("{point} {fault}: {what}"));
            }
        }
        field.reached += 1;
    }

    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// How many cells there were in which the fault came.
    pub(crate) fn reached(&self) -> u32 {
        self.fields.values().map(|field| field.reached).sum()
    }

    /// All of it; `held/reached` in each field.
    pub(crate) fn print(&self) -> String {
        let mut text = String::new();
        let rows: BTreeSet<(Side, &str)> = self.fields.keys().map(|(side, call, _)| (*side, *call)).collect();
        let line = |text: &mut String, head: [&str; 2], fields: Vec<String>| {
            let _ = write!(text, "{:<12}{:<18}", head[0], head[1]);
            for field in fields {
                let _ = write!(text, "{field:>12}");
            }
            text.push('\n');
        };
        line(&mut text, ["side", "call"], self.columns.iter().map(|column| (*column).to_owned()).collect());
        for (side, call) in rows {
            let fields = self.columns.iter().map(|column| match self.fields.get(&(side, call, column)) {
                Some(field) if field.reached > 0 => format!("{}/{}", field.held, field.reached),
                _ => "-".to_owned(),
            });
            line(&mut text, [&side.to_string(), call], fields.collect());
        }
        let sums = self.columns.iter().map(|column| {
            let of_it = || self.fields.iter().filter(|((_, _, of), _)| of == column).map(|(_, field)| field);
            format!(
                "{}/{}",
                of_it().map(|field| field.held).sum::<u32>(),
                of_it().map(|field| field.reached).sum::<u32>()
            )
        });
        line(&mut text, ["all", ""], sums.collect());
        for ((column, side, how), count) in &self.hows {
            let _ = writeln!(text, "{column} of the {side}: {how}, {count} times");
        }
        for failure in &self.failures {
            let _ = writeln!(text, "FAILED {failure}");
        }
        let _ = writeln!(text, "{} runs, {} with the fault, {} failed", self.runs, self.reached(), self.failures.len());
        text
    }
}
