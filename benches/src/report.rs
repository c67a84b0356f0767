//! Medians with their spread, as Markdown. Not here: taking the measurements.

/// The rounds of one measure.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rounds(Vec<f64>);

impl Rounds {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The median; the mean of the middle two when their number is even. Not a number when there were no rounds.
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        match (sorted.len(), sorted.len() / 2) {
            (0, _) => f64::NAN,
            (n, half) if n % 2 == 1 => sorted[half],
            (_, half) => f64::midpoint(sorted[half - 1], sorted[half]),
        }
    }

    /// `median (least to greatest)`.
    pub fn shown(&self, decimals: usize) -> String {
        let sorted = self.sorted();
        match (sorted.first(), sorted.last()) {
            (Some(least), Some(greatest)) => {
                format!(
                    "{:.decimals$} ({least:.decimals$} to {greatest:.decimals$})",
                    self.median()
                )
            }
            _ => "-".into(),
        }
    }

    /// The greatest of the rounds, or zero.
    pub fn greatest(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }
}

/// `this / reference` with two decimals, or `-` where there is nothing to compare.
pub(crate) fn ratio(this: f64, reference: f64) -> String {
    let ratio = this / reference;
    if ratio.is_finite() {
        format!("{ratio:.2}")
    } else {
        "-".into()
    }
}

/// One row of a Markdown table.
pub(crate) fn row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}

/// The head of a Markdown table.
pub(crate) fn head(names: &[&str]) {
    println!("| {} |\n|{}", names.join(" | "), "---|".repeat(names.len()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(values: &[f64]) -> Rounds {
        Rounds(values.to_vec())
    }

    #[test]
    fn the_median_ignores_one_bad_round() {
        assert_eq!(rounds(&[9.0, 1.0, 10.0]).median(), 9.0);
        assert_eq!(rounds(&[1.0, 2.0]).median(), 1.5);
        assert!(rounds(&[]).median().is_nan());
    }

    #[test]
    fn a_spread_is_shown_and_nothing_is_a_dash() {
        assert_eq!(rounds(&[3.0, 1.0, 2.0]).shown(1), "2.0 (1.0 to 3.0)");
        assert_eq!(rounds(&[]).shown(1), "-");
        assert_eq!(ratio(1.0, 0.0), "-");
        assert_eq!(ratio(1.0, 4.0), "0.25");
    }
}
