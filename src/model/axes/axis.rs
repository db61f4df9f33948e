//! What the positions along an axis of a value stand for.

/// What a factor of an axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Batch,
    Row,
    Column,
}

/// A part of an axis. The positions along an axis are the product of its factors, the last one running fastest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Factor {
    /// Frames, or rows or columns of the picture: position `i` is number `(i · stride + shift) mod extent` of `extent`.
    /// A factor holds all of them when its stride is 1 and its size is the extent.
    Counted { role: Role, size: i64, stride: i64, extent: i64, shift: i64 },
    /// Features that were computed for the same position.
    Channel(i64),
    /// Tokens of the grid `rows × columns`, with `before` and `after` tokens that belong to no position.
    Tokens { before: i64, rows: i64, columns: i64, after: i64 },
    /// Features of several positions, or of several maps, one after the other.
    Mixed(i64),
    /// Positions of a value that does not depend on the picture: they stand for whatever they are combined with.
    Free(i64),
    /// Not known.
    Unknown(i64),
}

impl Factor {
    /// All of `size` frames, rows or columns.
    pub fn whole(role: Role, size: i64) -> Self {
        Factor::Counted { role, size, stride: 1, extent: size, shift: 0 }
    }

    pub fn size(&self) -> i64 {
        match *self {
            Factor::Counted { size, .. }
            | Factor::Channel(size)
            | Factor::Mixed(size)
            | Factor::Free(size)
            | Factor::Unknown(size) => size,
            Factor::Tokens { before, rows, columns, after } => before + rows * columns + after,
        }
    }

    /// Whether it counts positions of the picture, more than one.
    fn is_spatial(&self) -> bool {
        match self {
            Factor::Counted { role: Role::Row | Role::Column, size, .. } => *size > 1,
            Factor::Tokens { rows, columns, .. } => rows * columns > 1,
            Factor::Mixed(size) => *size > 1,
            _ => false,
        }
    }

    /// The outer factor of `outer` positions, and the inner one of the rest. `outer` divides the size.
    fn split(&self, outer: i64) -> (Factor, Factor) {
        let inner = self.size() / outer;
        match *self {
            Factor::Counted { role, stride, extent, shift, .. } => (
                Factor::Counted { role, size: outer, stride: stride * inner, extent, shift },
                Factor::Counted { role, size: inner, stride, extent, shift },
            ),
            Factor::Channel(_) => (Factor::Channel(outer), Factor::Channel(inner)),
            Factor::Free(_) => (Factor::Free(outer), Factor::Free(inner)),
            Factor::Unknown(_) | Factor::Mixed(_) | Factor::Tokens { .. } => {
                (Factor::Unknown(outer), Factor::Unknown(inner))
            }
        }
    }

    /// The factor in a coarser count, after another factor of the same rows or columns is gone.
    fn without(self, consumed: &Factor) -> Factor {
        match (self, consumed) {
            (
                Factor::Counted { role, size, stride, extent, shift },
                &Factor::Counted { role: role_, size: size_, stride: stride_, extent: extent_, .. },
            ) if role == role_ && extent == extent_ && role != Role::Batch && size_ > 1 => {
                if stride % (stride_ * size_) == 0 && shift % size_ == 0 {
                    Factor::Counted { role, size, stride: stride / size_, extent: extent / size_, shift: shift / size_ }
                } else {
                    // Rows of different parts of the picture, on top of each other.
                    Factor::Mixed(size)
                }
            }
            (factor, _) => factor,
        }
    }

    /// The two factors as one, if they are parts of the same.
    fn joined(&self, inner: &Factor) -> Option<Factor> {
        match (self, inner) {
            (
                Factor::Counted { role, size, stride, extent, shift },
                Factor::Counted { role: role_, size: size_, stride: stride_, extent: extent_, shift: shift_ },
            ) if (role, extent, shift) == (role_, extent_, shift_) && *stride == stride_ * size_ => {
                Some(Factor::Counted {
                    role: *role,
                    size: size * size_,
                    stride: *stride_,
                    extent: *extent,
                    shift: *shift,
                })
            }
            (Factor::Channel(a), Factor::Channel(b)) => Some(Factor::Channel(a * b)),
            (Factor::Free(a), Factor::Free(b)) => Some(Factor::Free(a * b)),
            (Factor::Unknown(a), Factor::Unknown(b)) => Some(Factor::Unknown(a * b)),
            _ => None,
        }
    }

    /// Whether it holds the whole of its extent, in order.
    fn is_whole(&self, wanted: Role) -> bool {
        matches!(self, Factor::Counted { role, size, stride: 1, extent, shift: 0 } if *role == wanted && size == extent)
    }
}

/// An axis: the product of its factors. Without factors it has one position, which stands for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Axis(Vec<Factor>);

impl Axis {
    /// An axis of these factors, joined where they are parts of the same. Factors of size 1 say nothing, except that an
    /// axis is the batch's.
    pub fn new(factors: impl IntoIterator<Item = Factor>) -> Self {
        let mut joined: Vec<Factor> = Vec::new();
        for factor in factors {
            if factor.size() == 1 && !matches!(factor, Factor::Counted { role: Role::Batch, .. }) {
                continue;
            }
            match joined.last().and_then(|last| last.joined(&factor)) {
                Some(both) => *joined.last_mut().expect("there is a last one") = both,
                None => joined.push(factor),
            }
        }
        Axis(joined)
    }

    pub fn channel(size: i64) -> Self {
        Axis::new([Factor::Channel(size)])
    }

    pub fn unknown(size: i64) -> Self {
        Axis::new([Factor::Unknown(size)])
    }

    pub fn free(size: i64) -> Self {
        Axis::new([Factor::Free(size)])
    }

    pub fn whole(role: Role, size: i64) -> Self {
        Axis::new([Factor::whole(role, size)])
    }

    pub fn factors(&self) -> &[Factor] {
        &self.0
    }

    pub fn size(&self) -> i64 {
        self.0.iter().map(Factor::size).product()
    }

    pub fn is_spatial(&self) -> bool {
        self.0.iter().any(Factor::is_spatial)
    }

    pub fn is_unknown(&self) -> bool {
        self.0.iter().any(|factor| matches!(factor, Factor::Unknown(_)))
    }

    /// Whether it is the batch's axis, every frame in order.
    pub fn is_batch(&self) -> bool {
        matches!(self.0.as_slice(), [batch] if batch.is_whole(Role::Batch))
    }

    /// Whether it holds all rows (or columns) of a map, in order.
    pub fn is_whole(&self, role: Role) -> bool {
        match self.0.as_slice() {
            [] => role != Role::Batch,
            [one] => one.is_whole(role),
            _ => false,
        }
    }

    /// Whether it holds features, or is of size 1.
    pub fn is_channel(&self) -> bool {
        self.0.iter().all(|factor| matches!(factor, Factor::Channel(_) | Factor::Free(_)))
    }

    /// The grid of an axis that holds every position of a map, row by row.
    pub fn tokens(&self) -> Option<Factor> {
        match self.0.as_slice() {
            [tokens @ Factor::Tokens { .. }] => Some(tokens.clone()),
            [rows, columns] if rows.is_whole(Role::Row) && columns.is_whole(Role::Column) => {
                Some(Factor::Tokens { before: 0, rows: rows.size(), columns: columns.size(), after: 0 })
            }
            _ => None,
        }
    }

    /// The axis of a value that is combined elementwise from two, one axis each; sizes of 1 are broadcast.
    pub fn combined(&self, other: &Axis) -> Axis {
        let is_free = |axis: &Axis| axis.0.iter().all(|factor| matches!(factor, Factor::Free(_)));
        let prevails = |a: &Axis, b: &Axis| is_free(b) || (b.is_unknown() && !a.is_unknown());
        match (self.size(), other.size()) {
            (1, 1) if other.is_batch() => other.clone(),
            (1, 1) => self.clone(),
            (_, 1) => self.clone(),
            (1, _) => other.clone(),
            (a, b) if a != b => Axis::unknown(a.max(b)),
            _ if self == other || prevails(self, other) => self.clone(),
            _ if prevails(other, self) => other.clone(),
            (size, _) => Axis::unknown(size),
        }
    }

    /// The axis after a window slid along it, as in a convolution or a pooling: `size` positions are left.
    /// `keeps_positions`: each position is computed from the same position alone.
    pub fn windowed(&self, size: i64, keeps_positions: bool) -> Axis {
        let role = [Role::Row, Role::Column].into_iter().find(|&role| !self.0.is_empty() && self.is_whole(role));
        match role {
            Some(role) => Axis::whole(role, size),
            None if keeps_positions && size == self.size() => self.clone(),
            None if size == 1 => Axis::default(),
            None if self.is_channel() && !self.0.is_empty() => Axis::channel(size),
            None => Axis::unknown(size),
        }
    }

    /// The positions `start`, `start + step`, …, `size` of them.
    pub fn sliced(&self, start: i64, step: i64, size: i64) -> Axis {
        if (start, step, size) == (0, 1, self.size()) {
            return self.clone();
        }
        if self.is_channel() {
            return if self.0.iter().any(|factor| matches!(factor, Factor::Channel(_))) {
                Axis::channel(size)
            } else {
                Axis::free(size)
            };
        }
        for role in [Role::Row, Role::Column] {
            // What is left still spans the picture, but for a border such as a convolution without padding leaves out.
            let covered = size.saturating_mul(step);
            let spans = || (self.size() - covered).unsigned_abs() <= self.size() as u64 / BORDER;
            let every = || (0..step.min(self.size())).contains(&start) && (self.size() - 1 - start) / step + 1 == size;
            if self.is_whole(role) && step > 0 && (spans() || every()) {
                return Axis::whole(role, size);
            }
        }
        match self.tokens() {
            Some(Factor::Tokens { before, rows, columns, .. }) if step == 1 => {
                let grid = (before, before + rows * columns);
                let end = start.saturating_add(size);
                if start <= grid.0 && end >= grid.1 {
                    let tokens = Factor::Tokens { before: before - start, rows, columns, after: end - grid.1 };
                    Axis(vec![tokens]).simplified()
                } else if end <= grid.0 || start >= grid.1 {
                    Axis::free(size)
                } else {
                    Axis::unknown(size)
                }
            }
            _ if size == 1 => Axis::default(),
            _ => Axis::unknown(size),
        }
    }

    /// The axis with `before` and `after` new positions at its ends, which belong to no position of the picture.
    pub fn padded(&self, before: i64, after: i64) -> Axis {
        match self.tokens() {
            Some(Factor::Tokens { before: own_before, rows, columns, after: own_after })
                if before >= 0 && after >= 0 =>
            {
                let (before, after) = (own_before.saturating_add(before), own_after.saturating_add(after));
                Axis(vec![Factor::Tokens { before, rows, columns, after }]).simplified()
            }
            _ => self.windowed(self.size().saturating_add(before).saturating_add(after), true),
        }
    }

    /// Position `i` becomes what was at `i − by`, around the end.
    pub fn rolled(&self, by: i64) -> Axis {
        match self.0.as_slice() {
            [] => Axis::default(),
            [Factor::Counted { role, size, stride: 1, extent, shift }] if size == extent => {
                let shift = (shift - by.rem_euclid(*extent)).rem_euclid(*extent);
                Axis(vec![Factor::Counted { role: *role, size: *size, stride: 1, extent: *extent, shift }])
            }
            _ if self.is_channel() => self.clone(),
            _ => Axis::unknown(self.size()),
        }
    }

    /// The axes one after the other, as by `cat`.
    pub fn concatenated(axes: &[Axis]) -> Axis {
        let total = axes.iter().map(Axis::size).sum();
        if axes.iter().any(Axis::is_unknown) {
            return Axis::unknown(total);
        }
        if axes.iter().all(Axis::is_channel) {
            let is_channel = axes.iter().any(|axis| axis.0.iter().any(|factor| matches!(factor, Factor::Channel(_))));
            // Of single values, each is a feature.
            let has_content = is_channel || axes.iter().any(|axis| axis.0.is_empty());
            return if has_content { Axis::channel(total) } else { Axis::free(total) };
        }
        let grids: Vec<usize> = (0..axes.len()).filter(|&index| axes[index].is_spatial()).collect();
        let size = |axes: &[Axis]| axes.iter().map(Axis::size).sum::<i64>();
        match grids.as_slice() {
            [] => Axis::unknown(total),
            &[grid] => match axes[grid].tokens() {
                Some(Factor::Tokens { before, rows, columns, after }) => {
                    let before = before + size(&axes[..grid]);
                    let after = after + size(&axes[grid + 1..]);
                    Axis(vec![Factor::Tokens { before, rows, columns, after }])
                }
                _ => Axis::new([Factor::Mixed(total)]),
            },
            _ => Axis::new([Factor::Mixed(total)]),
        }
    }

    /// Tokens without others than the grid's, as rows and columns.
    fn simplified(self) -> Axis {
        match self.0.as_slice() {
            [Factor::Tokens { before: 0, rows, columns, after: 0 }] => {
                Axis::new([Factor::whole(Role::Row, *rows), Factor::whole(Role::Column, *columns)])
            }
            _ => self,
        }
    }
}

/// The axes of a value whose elements are summed up, or become features, along `consumed`. What counted every second
/// row, beside a factor that counted the rows between them, then counts all rows of a map of half the height. In
/// attention the same positions are there twice, as queries and as keys: those that are kept are not gone.
pub fn coarsened(axes: Vec<Axis>, consumed: &[Factor]) -> Vec<Axis> {
    let is_kept = |part: &Factor| axes.iter().any(|axis| axis.0.contains(part));
    let gone: Vec<&Factor> = consumed.iter().filter(|part| !is_kept(part)).collect();
    let coarser = |factor: Factor| gone.iter().fold(factor, |factor, part| factor.without(part));
    axes.into_iter().map(|axis| Axis::new(axis.0.into_iter().map(coarser))).collect()
}

/// The share of an axis, as 1 / n, that a slice may leave out at its borders.
const BORDER: u64 = 8;

/// The axes of the same elements, in the same order, under another shape.
pub fn reshaped(axes: &[Axis], shape: &[i64]) -> Vec<Axis> {
    let mut left: Vec<Factor> = axes.iter().flat_map(|axis| axis.0.iter().cloned()).rev().collect();
    let mut aligned = true;
    let mut result = Vec::with_capacity(shape.len());
    for &size in shape {
        let mut taken = Vec::new();
        let mut needed = size;
        // A batch of one frame goes with the first axis that can have it.
        if size == 1 && aligned {
            taken.extend(left.pop_if(|factor| factor.size() == 1));
        }
        while needed > 1 && aligned {
            let Some(factor) = left.pop() else {
                aligned = false;
                break;
            };
            let available = factor.size();
            if available < 1 {
                aligned = false;
            } else if needed % available == 0 {
                needed /= available;
                taken.push(factor);
            } else if available % needed == 0 {
                let (outer, inner) = factor.split(needed);
                taken.push(outer);
                left.push(inner);
                needed = 1;
            } else {
                aligned = false;
            }
        }
        result.push(if aligned { Axis::new(taken) } else { Axis::unknown(size) });
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(batch: i64, channels: i64, rows: i64, columns: i64) -> Vec<Axis> {
        vec![
            Axis::whole(Role::Batch, batch),
            Axis::channel(channels),
            Axis::whole(Role::Row, rows),
            Axis::whole(Role::Column, columns),
        ]
    }

    fn permuted(axes: &[Axis], order: &[usize]) -> Vec<Axis> {
        order.iter().map(|&index| axes[index].clone()).collect()
    }

    #[test]
    fn flattened_rows_and_columns_are_the_tokens_of_their_grid() {
        let flat = reshaped(&map(2, 16, 4, 6), &[2, 16, 24]);
        assert_eq!(flat[2].tokens(), Some(Factor::Tokens { before: 0, rows: 4, columns: 6, after: 0 }));
        assert_eq!(reshaped(&flat, &[2, 16, 4, 6]), map(2, 16, 4, 6));
        let columns_first = reshaped(&permuted(&map(2, 16, 4, 6), &[0, 1, 3, 2]), &[2, 16, 24]);
        assert_eq!(columns_first[2].tokens(), None);
    }

    #[test]
    fn windows_and_their_way_back_give_the_map() {
        // [N, H, W, C] as in Swin: windows of 2 × 3.
        let axes = permuted(&map(2, 16, 4, 6), &[0, 2, 3, 1]);
        let split = reshaped(&axes, &[2, 2, 2, 2, 3, 16]);
        let windows = reshaped(&permuted(&split, &[0, 1, 3, 2, 4, 5]), &[8, 6, 16]);
        assert!(!windows[0].is_batch() && windows[1].tokens().is_none());
        let back = permuted(&reshaped(&windows, &[2, 2, 2, 2, 3, 16]), &[0, 1, 3, 2, 4, 5]);
        assert_eq!(reshaped(&back, &[2, 4, 6, 16]), axes);
    }

    #[test]
    fn heads_are_channels_and_go_back_to_them() {
        // Attention with tokens first: [tokens, N, C] → [N · heads, tokens, C / heads] and back.
        for batch in [1, 2] {
            let flat = reshaped(&map(batch, 16, 2, 2), &[batch, 16, 4]);
            let sequence = permuted(&flat, &[2, 0, 1]);
            let heads = reshaped(&sequence, &[4, batch * 2, 8]);
            let inner = reshaped(&permuted(&heads, &[1, 0, 2]), &[batch, 2, 4, 8]);
            assert!(inner[0].is_batch(), "{inner:?}");
            assert!(inner[2].tokens().is_some());
            let back = reshaped(&permuted(&inner, &[2, 0, 1, 3]), &[4 * batch, 16]);
            assert_eq!(reshaped(&back, &[4, batch, 16]), sequence);
        }
    }

    #[test]
    fn class_tokens_are_counted_and_cut_off() {
        let grid = reshaped(&map(2, 16, 2, 3), &[2, 16, 6])[2].clone();
        let with_class = Axis::concatenated(&[Axis::free(1), grid.clone()]);
        assert_eq!(with_class.tokens(), Some(Factor::Tokens { before: 1, rows: 2, columns: 3, after: 0 }));
        assert_eq!(with_class.sliced(1, 1, 6), grid);
        assert!(!with_class.sliced(0, 1, 1).is_spatial());
        assert!(with_class.sliced(1, 1, 4).is_unknown(), "a part of the grid");
        let twice = Axis::concatenated(&[grid.clone(), grid]);
        assert!(twice.is_spatial() && twice.tokens().is_none());
    }

    #[test]
    fn a_rolled_axis_holds_no_map_until_it_is_rolled_back() {
        let rows = Axis::whole(Role::Row, 8);
        let rolled = rows.rolled(-3);
        assert!(!rolled.is_whole(Role::Row));
        assert_eq!(rolled.rolled(3), rows);
    }

    #[test]
    fn what_is_known_prevails_and_a_contradiction_is_not_known() {
        let (rows, channel) = (Axis::whole(Role::Row, 8), Axis::channel(8));
        assert_eq!(rows.combined(&Axis::free(8)), rows);
        assert_eq!(Axis::unknown(8).combined(&rows), rows);
        assert_eq!(rows.combined(&Axis::default()), rows);
        assert!(rows.combined(&channel).is_unknown());
        let batch = Axis::whole(Role::Batch, 1);
        assert!(Axis::default().combined(&batch).is_batch());
    }

    #[test]
    fn a_shape_that_cuts_through_axes_is_not_known() {
        let cut = reshaped(&map(2, 16, 4, 6), &[2, 3, 128]);
        assert!(cut[0].is_batch() && cut[1].is_unknown() && cut[2].is_unknown());
    }

    #[test]
    fn a_window_keeps_a_map_and_ends_it_at_one_position() {
        let rows = Axis::whole(Role::Row, 8);
        assert_eq!(rows.windowed(4, false), Axis::whole(Role::Row, 4));
        assert_eq!(rows.windowed(1, false), Axis::default());
        assert!(Axis::default().windowed(3, false).is_unknown());
        assert_eq!(rows.sliced(0, 2, 4), Axis::whole(Role::Row, 4));
        assert!(rows.sliced(0, 1, 4).is_unknown(), "half of the picture");
        let odd = Axis::whole(Role::Row, 7);
        assert_eq!(odd.sliced(0, 2, 4), Axis::whole(Role::Row, 4));
        assert_eq!(odd.sliced(1, 2, 3), Axis::whole(Role::Row, 3));
        assert!(odd.sliced(0, 2, 2).is_unknown() && odd.sliced(3, 2, 2).is_unknown());
    }

    #[test]
    fn tokens_that_are_padded_belong_to_no_position() {
        let [batch, channels, rows, columns] = map(2, 16, 4, 6).try_into().unwrap();
        let tokens = Axis::new(rows.factors().iter().chain(columns.factors()).cloned());
        let padded = tokens.padded(1, 2);
        assert_eq!(padded.factors(), [Factor::Tokens { before: 1, rows: 4, columns: 6, after: 2 }]);
        assert_eq!(padded.sliced(1, 1, 24), tokens);
        assert_eq!(rows.padded(1, 1), Axis::whole(Role::Row, 6));
        assert_eq!(channels.padded(0, 3), Axis::channel(19));
        assert!(tokens.padded(-1, 0).is_unknown() && batch.padded(1, 0).is_unknown());
    }

    #[test]
    fn sizes_and_steps_of_a_hostile_file_are_survived() {
        let rows = Axis::whole(Role::Row, 8);
        assert!(rows.sliced(0, i64::MAX, 1).size() == 1 && rows.sliced(i64::MAX, 1, 0).size() <= 1);
        assert_eq!(rows.rolled(i64::MIN).size(), 8);
        assert!(rows.sliced(9, i64::MAX, 1).size() == 1 && rows.padded(i64::MAX, i64::MAX).size() > 8);
        let empty = [Axis::whole(Role::Batch, 2), Axis::unknown(0)];
        assert_eq!(reshaped(&empty, &[0, 7]).len(), 2);
        assert!(reshaped(&empty, &[3, 7]).iter().any(Axis::is_unknown));
    }
}
