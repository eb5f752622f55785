//! When clients come back: of a response that was released, how long until the next request arrives in its place?
//!
//! A closed loop of clients sends its next requests soon after its answers. What is known of each outstanding release
//! is its age; what was learned is the distribution of the times that others took. Nothing here knows who a client is:
//! an arrival is paired with the youngest outstanding release. Clients that left, or think for long, then grow old
//! unpaired and are written off, instead of shifting every later pair by one (which pairing with the oldest would do).

use crate::Nanos;
use smallvec::SmallVec;

/// Quarter octaves from 4 µs to about half a second; who thinks for longer isn't worth waiting for.
const BUCKETS: usize = 68;
const FIRST_OCTAVE: u32 = 12;

/// Samples remembered, roughly: some ten batches of 64, so that a change of clients is learned within a second.
const MEMORY: f32 = 1024.0;

/// Releases further apart than this are told apart; a bound on the work per decision.
const GROUPS: usize = 24;

/// Before anything is known: a client on the same network is back in this time or hasn't anything to send.
const FIRST_PATIENCE: Nanos = 100_000_000;
const LEAST_PATIENCE: Nanos = 500_000;

#[derive(Clone, Copy, Debug)]
struct Release {
    at: Nanos,
    outstanding: u32,
}

#[derive(Clone, Debug)]
pub struct Returns {
    /// Oldest first.
    releases: SmallVec<[Release; GROUPS]>,
    weights: [f32; BUCKETS],
    /// Weight of releases that nobody came back for.
    lost: f32,
    /// Weight at and beyond each bucket, lost included; as of the last release.
    survivors: [f32; BUCKETS + 1],
    /// A release older than this is written off.
    patience: Nanos,
    coupling: Coupling,
}

/// Do arrivals follow releases (a closed loop), or come when they like (an open one)? Those that don't care about
/// releases meet, on average, an age of E[g^2] / 2 E[g] since the last one, where g is the time between releases (the
/// inspection paradox). The closer to the release they come, the more they are its consequence.
#[derive(Clone, Copy, Debug, Default)]
struct Coupling {
    last: Option<Nanos>,
    arrivals: u64,
    releases: u64,
    age: f64,
    gap: f64,
    gap_squared: f64,
}

impl Coupling {
    /// Means over some two hundred arrivals and thirty releases.
    const PER_ARRIVAL: f64 = 1.0 / 256.0;
    const PER_RELEASE: f64 = 1.0 / 32.0;
    /// What an open loop may show by chance.
    const NOISE: f64 = 0.2;

    fn arrived(&mut self, now: Nanos) {
        if let Some(last) = self.last {
            self.arrivals += 1;
            self.age +=
                Self::PER_ARRIVAL.max(1.0 / self.arrivals as f64) * (now.saturating_sub(last) as f64 - self.age);
        }
    }

    fn released(&mut self, now: Nanos) {
        if let Some(last) = self.last {
            let gap = now.saturating_sub(last) as f64;
            self.releases += 1;
            let gain = Self::PER_RELEASE.max(1.0 / self.releases as f64);
            self.gap += gain * (gap - self.gap);
            self.gap_squared += gain * (gap * gap - self.gap_squared);
        }
        self.last = Some(now);
    }

    fn strength(&self) -> f64 {
        if self.gap_squared == 0.0 {
            return 0.0;
        }
        let earlier = 1.0 - self.age * 2.0 * self.gap / self.gap_squared;
        ((earlier - Self::NOISE) / (1.0 - Self::NOISE)).clamp(0.0, 1.0)
    }
}

impl Default for Returns {
    fn default() -> Returns {
        Returns {
            releases: SmallVec::new(),
            weights: [0.0; BUCKETS],
            lost: 0.0,
            survivors: [0.0; BUCKETS + 1],
            patience: FIRST_PATIENCE,
            coupling: Coupling::default(),
        }
    }
}

impl Returns {
    /// `count` responses left at `now`.
    pub fn released(&mut self, now: Nanos, count: u32) {
        self.write_off(now);
        self.coupling.released(now);
        if count > 0 {
            if self.releases.len() == GROUPS {
                let oldest = self.releases.remove(0);
                self.lost += oldest.outstanding as f32;
            }
            self.releases.push(Release { at: now, outstanding: count });
        }
        self.summarise();
    }

    /// A request arrived at `now`.
    pub fn arrived(&mut self, now: Nanos) {
        self.coupling.arrived(now);
        if let Some(release) = self.releases.last_mut() {
            let age = now.saturating_sub(release.at);
            release.outstanding -= 1;
            if release.outstanding == 0 {
                self.releases.pop();
            }
            if age <= self.patience {
                self.weights[bucket(age)] += 1.0;
            }
        }
    }

    fn write_off(&mut self, now: Nanos) {
        let patience = self.patience;
        let old = self.releases.iter().take_while(|release| now.saturating_sub(release.at) > patience).count();
        for release in self.releases.drain(..old) {
            self.lost += release.outstanding as f32;
        }
    }

    fn summarise(&mut self) {
        let returned: f32 = self.weights.iter().sum();
        if returned + self.lost > MEMORY {
            let keep = MEMORY / 2.0 / (returned + self.lost);
            self.weights.iter_mut().for_each(|weight| *weight *= keep);
            self.lost *= keep;
        }
        let mut survivors = self.lost;
        self.survivors[BUCKETS] = survivors;
        for index in (0..BUCKETS).rev() {
            survivors += self.weights[index];
            self.survivors[index] = survivors;
        }
        let returned = survivors - self.lost;
        if returned >= 1.0 {
            // Beyond the age at which all but half a percent were back, with room to learn that it grew.
            let rare = self.lost + returned * 0.005;
            let last = self.survivors.partition_point(|survivors| *survivors > rare);
            self.patience = bound(last.min(BUCKETS) + 4).max(LEAST_PATIENCE);
        }
    }

    /// How many requests are expected within `after` from now.
    pub fn expected(&self, now: Nanos, after: Nanos) -> f64 {
        let mut sum = 0.0;
        for release in &self.releases {
            let age = now.saturating_sub(release.at);
            let alive = self.surviving(age);
            // Less than one sample this old: nothing is known, so nothing is expected.
            if age <= self.patience && alive >= 0.5 {
                let gone = 1.0 - self.surviving(age + after) / alive;
                sum += f64::from(gone) * f64::from(release.outstanding);
            }
        }
        sum
    }

    /// 0: arrivals come independently of releases (an open loop); 1: right after them (a closed one).
    pub fn coupling(&self) -> f64 {
        self.coupling.strength()
    }

    /// Waiting times worth considering: until the youngest release reaches the end of each bucket ahead.
    pub fn candidates(&self, now: Nanos) -> impl Iterator<Item = Nanos> + '_ {
        let age = self.releases.last().map(|release| now.saturating_sub(release.at));
        let ages = age.into_iter().flat_map(|age| (bucket(age)..BUCKETS).map(move |index| (age, index)));
        ages.filter(|(_, index)| self.weights[*index] > 0.0)
            .map(|(age, index)| bound(index + 1).saturating_sub(age).max(1))
    }

    fn surviving(&self, age: Nanos) -> f32 {
        let index = bucket(age);
        let (start, end) = (bound(index), bound(index + 1));
        let inside = (age.saturating_sub(start) as f32 / (end - start) as f32).min(1.0);
        self.survivors[index] + (self.survivors[index + 1] - self.survivors[index]) * inside
    }
}

fn bucket(age: Nanos) -> usize {
    if age < 1 << FIRST_OCTAVE {
        return 0;
    }
    let octave = age.ilog2();
    let quarter = (age >> (octave - 2)) & 3;
    (((octave - FIRST_OCTAVE) * 4) as usize + quarter as usize).min(BUCKETS - 1)
}

/// The lower bound of a bucket.
fn bound(index: usize) -> Nanos {
    if index == 0 {
        return 0;
    }
    let octave = FIRST_OCTAVE + index as u32 / 4;
    (4 + index as Nanos % 4) << (octave - 2)
}
