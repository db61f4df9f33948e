//! Kinds of maps, sets of kinds, and one value per kind.

/// What a tensor of an answer shows: a map of one class, or the input that the map is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MapKind {
    /// Guided gradient × upsampled CAM, `[C, H, W]`.
    GuidedGradCam,
    /// The class activation map (CAM) of the target layer, upsampled to the input's size, `[H, W]`.
    GradCam,
    /// The guided gradient of the class's score with respect to the input, `[C, H, W]`.
    GuidedBackprop,
    /// The model's input, `[C, H, W]`. It is part of the request, so no run computes it. It stays the last kind.
    Input,
}

impl MapKind {
    const COUNT: usize = MapKind::Input as usize + 1;

    /// Every kind, in the order of declaration.
    pub const ALL: [MapKind; MapKind::COUNT] =
        [MapKind::GuidedGradCam, MapKind::GradCam, MapKind::GuidedBackprop, MapKind::Input];

    /// Whether the map is made from the CAM of a target layer.
    pub fn needs_cam(self) -> bool {
        match self {
            MapKind::GuidedGradCam | MapKind::GradCam => true,
            MapKind::GuidedBackprop | MapKind::Input => false,
        }
    }

    /// Whether the map is made from the guided gradient with respect to the input.
    pub fn needs_guided_gradient(self) -> bool {
        match self {
            MapKind::GuidedGradCam | MapKind::GuidedBackprop => true,
            MapKind::GradCam | MapKind::Input => false,
        }
    }

    /// Whether the map has the input's channels, `[C, H, W]`; otherwise it is `[H, W]`.
    pub fn has_channels(self) -> bool {
        match self {
            MapKind::GuidedGradCam | MapKind::GuidedBackprop | MapKind::Input => true,
            MapKind::GradCam => false,
        }
    }

    /// Whether the map also exists at the target layer's own resolution.
    pub fn has_layer_resolution(self) -> bool {
        match self {
            MapKind::GradCam => true,
            MapKind::GuidedGradCam | MapKind::GuidedBackprop | MapKind::Input => false,
        }
    }

    const fn is_computed(self) -> bool {
        !matches!(self, MapKind::Input)
    }
}

/// A set of kinds to compute. [`MapKind::Input`] is never in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MapSet([bool; MapKind::COUNT]);

impl MapSet {
    /// The set of `kinds`.
    pub const fn of(kinds: &[MapKind]) -> Self {
        let mut set = [false; MapKind::COUNT];
        let mut index = 0;
        while index < kinds.len() {
            if kinds[index].is_computed() {
                set[kinds[index] as usize] = true;
            }
            index += 1;
        }
        MapSet(set)
    }

    pub fn contains(self, kind: MapKind) -> bool {
        self.0[kind as usize]
    }

    /// The kinds in the set, in the order of declaration.
    pub fn iter(self) -> impl Iterator<Item = MapKind> {
        MapKind::ALL.into_iter().filter(move |&kind| self.contains(kind))
    }

    /// Whether no map is computed: the answer holds predictions alone.
    pub fn is_empty(self) -> bool {
        self.iter().next().is_none()
    }

    /// Whether a kind in the set needs the CAM of a target layer.
    pub fn needs_cam(self) -> bool {
        self.iter().any(MapKind::needs_cam)
    }

    /// Whether a kind in the set needs the guided gradient with respect to the input.
    pub fn needs_guided_gradient(self) -> bool {
        self.iter().any(MapKind::needs_guided_gradient)
    }
}

impl FromIterator<MapKind> for MapSet {
    fn from_iter<I: IntoIterator<Item = MapKind>>(kinds: I) -> Self {
        MapSet::of(&kinds.into_iter().collect::<Vec<_>>())
    }
}

/// At most one value per kind: a tensor on the device, or a map in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct PerMap<T>([Option<T>; MapKind::COUNT]);

impl<T> PerMap<T> {
    /// The value of `kind`; `None` when it was not computed.
    pub fn get(&self, kind: MapKind) -> Option<&T> {
        self.0[kind as usize].as_ref()
    }

    /// Sets the value of `kind` and returns the former one.
    pub fn insert(&mut self, kind: MapKind, value: T) -> Option<T> {
        self.0[kind as usize].replace(value)
    }

    /// Takes the value of `kind` out.
    pub fn take(&mut self, kind: MapKind) -> Option<T> {
        self.0[kind as usize].take()
    }

    /// The values, in the order of [`MapKind::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (MapKind, &T)> {
        MapKind::ALL.into_iter().filter_map(|kind| Some((kind, self.get(kind)?)))
    }

    /// Converts every value.
    ///
    /// # Errors
    /// The first error of `convert`.
    pub fn try_map<U, E>(&self, mut convert: impl FnMut(&T) -> Result<U, E>) -> Result<PerMap<U>, E> {
        let mut converted = PerMap::default();
        for (kind, value) in self.iter() {
            converted.insert(kind, convert(value)?);
        }
        Ok(converted)
    }
}

impl<T> Default for PerMap<T> {
    fn default() -> Self {
        PerMap([const { None }; MapKind::COUNT])
    }
}

impl<T> FromIterator<(MapKind, T)> for PerMap<T> {
    fn from_iter<I: IntoIterator<Item = (MapKind, T)>>(values: I) -> Self {
        let mut map = PerMap::default();
        values.into_iter().for_each(|(kind, value)| drop(map.insert(kind, value)));
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_index() {
        for (index, kind) in MapKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
    }

    #[test]
    fn a_set_holds_what_is_computed_and_knows_what_that_needs() {
        let set: MapSet = [MapKind::Input, MapKind::GradCam].into_iter().collect();
        assert_eq!(set, MapSet::of(&[MapKind::GradCam]));
        assert!(set.needs_cam() && !set.needs_guided_gradient() && !set.is_empty());
        assert!(MapSet::of(&[MapKind::Input]).is_empty());
        let fused = MapSet::of(&[MapKind::GuidedGradCam]);
        assert!(fused.needs_cam() && fused.needs_guided_gradient());
        assert!(!MapSet::of(&[MapKind::GuidedBackprop]).needs_cam());
    }

    #[test]
    fn every_kind_is_carried_to_the_same_kind() {
        let numbers: PerMap<usize> = MapKind::ALL.into_iter().map(|kind| (kind, kind as usize)).collect();
        let texts = numbers.try_map(|number| Ok::<_, ()>(number.to_string())).unwrap();
        for kind in MapKind::ALL {
            assert_eq!(texts.get(kind), Some(&(kind as usize).to_string()));
        }
        assert_eq!(numbers.try_map(|&number| if number == 1 { Err(number) } else { Ok(number) }), Err(1));
    }

    #[test]
    fn a_kind_that_was_not_computed_has_no_value() {
        let mut maps = PerMap::default();
        assert_eq!(maps.insert(MapKind::GradCam, 1), None);
        assert_eq!(maps.insert(MapKind::GradCam, 2), Some(1));
        assert_eq!(maps.iter().collect::<Vec<_>>(), [(MapKind::GradCam, &2)]);
        assert_eq!(maps.get(MapKind::Input), None);
        assert_eq!((maps.take(MapKind::GradCam), maps.take(MapKind::GradCam)), (Some(2), None));
    }
}
