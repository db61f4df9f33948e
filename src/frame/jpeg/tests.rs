//! Damaged files, made from sound ones of tests/fixtures/preprocessing. That sound files give Pillow's pixels is tested
//! in tests/preprocessing.rs.

use super::*;

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../../../tests/fixtures/preprocessing/", $name)) as &[u8]
    };
}

/// 75 × 53 pixels, MCUs of 16 × 16 pixels, three in a restart interval.
const INTERVALS: &[u8] = fixture!("camera_intervals.jpg");
const PROGRESSIVE_INTERVALS: &[u8] = fixture!("camera_intervals_progressive.jpg");
/// 75 × 53 pixels of 8 × 8 blocks, a row of them in a restart interval.
const GRAY_INTERVALS: &[u8] = fixture!("camera_intervals_gray.jpg");
/// 120 × 110 pixels without restart intervals.
const PLAIN: &[u8] = fixture!("444.jpg");
const PROGRESSIVE: &[u8] = fixture!("422.jpg");
const WIDTH: usize = 75;
const HEIGHT: usize = 53;

fn decode(data: &[u8]) -> Samples {
    Jpeg::read(data).expect("a header").decode().expect("a picture")
}

fn damage(data: &[u8]) -> Damage {
    decode(data).damage.expect("damage is seen")
}

fn refused(data: &[u8]) -> String {
    match Jpeg::read(data).and_then(Jpeg::decode) {
        Ok(_) => panic!("it was read"),
        Err(error) => error.to_string(),
    }
}

/// Where the data of the first scan begins.
fn scan_start(data: &[u8]) -> usize {
    Jpeg::read(data).expect("a header").at
}

/// Where the restart markers of the first scan are.
fn restarts(data: &[u8]) -> Vec<usize> {
    let start = scan_start(data);
    let end = intervals::split(data, start, 1000).end;
    (start..end).filter(|&at| data[at] == 0xFF && (0xD0..=0xD7).contains(&data[at + 1])).collect()
}

fn without(data: &[u8], range: std::ops::Range<usize>) -> Vec<u8> {
    [&data[..range.start], &data[range.end..]].concat()
}

/// Whether the pixels of all MCUs of `side` pixels but those that `lost` names are those of `whole`. Interpolated
/// colours reach one pixel far.
fn agrees(whole: &Samples, part: &Samples, side: usize, lost: impl Fn(usize) -> bool) -> bool {
    let channels = whole.samples.len() / WIDTH / HEIGHT;
    let mcu = |x: usize, y: usize| y / side * WIDTH.div_ceil(side) + x / side;
    let spared = |x: usize, y: usize| {
        let around = |at: usize, most: usize| at.saturating_sub(1)..=(at + 1).min(most - 1);
        around(y, HEIGHT).all(|y| around(x, WIDTH).all(|x| !lost(mcu(x, y))))
    };
    (0..WIDTH * HEIGHT)
        .filter(|at| spared(at % WIDTH, at / WIDTH))
        .all(|at| whole.samples[at * channels..][..channels] == part.samples[at * channels..][..channels])
}

/// The share of the picture in the MCUs of `side` pixels that `lost` names.
fn share(side: usize, lost: impl Fn(usize) -> bool) -> f64 {
    let inside =
        (0..WIDTH * HEIGHT).filter(|at| lost(at / WIDTH / side * WIDTH.div_ceil(side) + at % WIDTH / side)).count();
    inside as f64 / (WIDTH * HEIGHT) as f64
}

#[test]
fn lost_restart_intervals_are_grey_and_shift_nothing() {
    for (file, side, units) in [(INTERVALS, 16, 3), (GRAY_INTERVALS, 8, 10)] {
        let (whole, markers) = (decode(file), restarts(file));
        assert!(whole.damage.is_none() && markers.len() == 6);
        for first in 0..6 {
            for last in first + 1..6 {
                let part = decode(&without(file, markers[first]..markers[last]));
                let lost = |mcu: usize| (first + 1..=last).contains(&(mcu / units));
                let damage = part.damage.expect("damage is seen");
                assert!((damage.lost - share(side, lost)).abs() < 1e-9, "{first} to {last}: {damage}");
                assert!(!damage.uncertain && damage.coarse == 0.0);
                assert!(agrees(&whole, &part, side, lost), "{first} to {last}");
            }
        }
    }
}

#[test]
fn a_restart_marker_that_is_lost_or_wrong_does_no_more_harm_than_it_must() {
    let (whole, markers) = (decode(INTERVALS), restarts(INTERVALS));
    for (index, &marker) in markers.iter().enumerate() {
        // Two intervals in one cannot be told apart.
        let part = decode(&without(INTERVALS, marker..marker + 2));
        let lost = |mcu: usize| mcu / 3 == index || mcu / 3 == index + 1;
        assert!(agrees(&whole, &part, 16, lost) && part.damage.is_some(), "marker {index} lost");
        for number in 0..8 {
            let mut file = INTERVALS.to_vec();
            file[marker + 1] = 0xD0 + number;
            let part = decode(&file);
            assert_eq!(part.damage, None, "marker {index} numbered {number}");
            assert_eq!(part.samples, whole.samples);
        }
    }
}

/// A file whose restart intervals after the first one, each with the marker before it, are those that `order` names.
fn rearranged(file: &[u8], order: &[usize]) -> Vec<u8> {
    let markers = restarts(file);
    let end = intervals::split(file, scan_start(file), 1000).end;
    let interval = |index: usize| &file[markers[index - 1]..markers.get(index).copied().unwrap_or(end)];
    let rearranged: Vec<&[u8]> = order.iter().map(|&index| interval(index)).collect();
    [&file[..markers[0]], &rearranged.concat(), &file[end..]].concat()
}

#[test]
fn intervals_out_of_order_are_damage_and_move_no_other() {
    for (file, side, units) in [(INTERVALS, 16, 3), (GRAY_INTERVALS, 8, 10)] {
        let whole = decode(file);
        assert_eq!(decode(&rearranged(file, &[1, 2, 3, 4, 5, 6])), whole);
        for first in 1..6 {
            for second in first + 1..=6 {
                let mut order = [1, 2, 3, 4, 5, 6];
                order.swap(first - 1, second - 1);
                let part = decode(&rearranged(file, &order));
                assert!(part.damage.is_some(), "{order:?}");
                assert!(agrees(&whole, &part, side, |mcu| (first..=second).contains(&(mcu / units))), "{order:?}");
            }
        }
    }
}

#[test]
fn an_interval_that_is_there_twice_is_read_once_and_hides_no_loss() {
    for (file, side, units) in [(INTERVALS, 16, 3), (GRAY_INTERVALS, 8, 10)] {
        let whole = decode(file);
        for doubled in 1..=6 {
            let order: Vec<usize> =
                (1..=6).flat_map(|index| vec![index; if index == doubled { 2 } else { 1 }]).collect();
            assert_eq!(decode(&rearranged(file, &order)), whole, "{order:?}");
            for lost in (1..=6).filter(|lost| *lost != doubled) {
                let order: Vec<usize> = order.iter().copied().filter(|index| *index != lost).collect();
                let part = decode(&rearranged(file, &order));
                let damage = part.damage.unwrap_or_else(|| panic!("{order:?}"));
                assert!(damage.lost > 0.0, "{order:?}: {damage}");
                assert!(agrees(&whole, &part, side, |mcu| mcu / units == lost), "{order:?}: {damage}");
            }
        }
    }
}

#[test]
fn eight_lost_intervals_are_missed_by_their_number_in_all() {
    let (file, markers) = (GRAY_INTERVALS, restarts(GRAY_INTERVALS));
    assert_eq!(markers.len(), 6, "of seven rows");
    let whole = decode(file);
    // Four times the rows: the same file, taller, with its intervals four times and numbers that go on.
    let frame = file.windows(2).position(|two| two == [0xFF, 0xC0]).expect("a frame header");
    let (start, end) = (scan_start(file), file.len() - 2);
    let starts: Vec<usize> = [start].into_iter().chain(markers.iter().map(|at| at + 2)).collect();
    let ends: Vec<usize> = markers.iter().copied().chain([end]).collect();
    let tall = |kept: &dyn Fn(usize) -> std::ops::Range<usize>| {
        let mut tall = file[..start].to_vec();
        tall[frame + 5..frame + 7].copy_from_slice(&(28u16 * 8).to_be_bytes());
        for row in 0..28 {
            let range = starts[row % 7]..ends[row % 7];
            let part = kept(row);
            let data = &file[range];
            tall.extend(&data[part.start.min(data.len())..part.end.min(data.len())]);
            if row < 27 && part.end == usize::MAX {
                tall.extend([0xFF, 0xD0 + (row % 8) as u8]);
            }
        }
        tall.extend([0xFF, 0xD9]);
        tall
    };
    let sound = decode(&tall(&|_| 0..usize::MAX));
    assert_eq!(sound.damage, None);
    assert_eq!(sound.samples[..75 * 48], whole.samples[..75 * 48]);
    // From the middle of row 5 to the middle of row 13.
    let part = decode(&tall(&|row| match row {
        5 => 0..9,
        6..13 => 0..0,
        13 => 12..usize::MAX,
        _ => 0..usize::MAX,
    }));
    let damage = part.damage.expect("damage is seen");
    assert!((damage.lost - 9.0 / 28.0).abs() < 1e-9 && !damage.uncertain, "{damage}");
    for row in (0..5).chain(14..28) {
        let pixels = row * 8 * 75..(row + 1) * 8 * 75;
        assert_eq!(part.samples[pixels.clone()], sound.samples[pixels], "row {row}");
    }
}

#[test]
fn damage_inside_an_interval_stays_there() {
    let (whole, markers) = (decode(INTERVALS), restarts(INTERVALS));
    for (index, pair) in markers.windows(2).enumerate() {
        let mut file = INTERVALS.to_vec();
        // An unknown code: sixteen ones, stuffed.
        file.splice(pair[0] + 6..pair[0] + 10, [0xFF, 0, 0xFF, 0, 0xFF, 0]);
        let part = decode(&file);
        let lost = |mcu: usize| mcu / 3 == index + 1;
        let damage = part.damage.expect("damage is seen");
        assert!((damage.lost - share(16, lost)).abs() < 1e-9, "{damage}");
        assert!(agrees(&whole, &part, 16, lost), "interval {index}");
    }
}

#[test]
fn a_cut_keeps_what_came_before_it_and_says_how_much_is_missing() {
    for (file, side, units) in [(INTERVALS, 16, 3), (GRAY_INTERVALS, 8, 10)] {
        let whole = decode(file);
        let mut before = 1.0;
        for end in scan_start(file)..file.len() - 2 {
            let part = decode(&file[..end]);
            let damage = part.damage.unwrap_or_else(|| panic!("{end} bytes"));
            assert!(damage.cut && !damage.uncertain, "{end} bytes: {damage}");
            assert!(damage.lost <= before && damage.lost > 0.0, "{end} bytes: {damage}, {before} before");
            before = damage.lost;
            let first = (0..units * 7).find(|&mcu| share(side, |other| other >= mcu) <= damage.lost + 1e-9);
            assert!(agrees(&whole, &part, side, |mcu| first.is_some_and(|first| mcu >= first)), "{end} bytes");
        }
        assert!(before < 0.02, "the last MCU is small");
    }
}

#[test]
fn an_end_that_comes_early_or_data_that_is_left_over_is_damage() {
    for file in [PLAIN, fixture!("420.jpg"), fixture!("gray.jpg"), fixture!("camera_separate_411.jpg")] {
        let (start, end) = (scan_start(file), file.len() - 2);
        for cut in [start + 9, start + (end - start) / 3, end - 9] {
            let early = [&file[..cut], &[0xFF, 0xD9]].concat();
            assert!(damage(&early).uncertain, "{cut}");
        }
        let third = (end - start) / 3;
        let twice = [&file[..end - third], &file[start + third..]].concat();
        let damage = damage(&twice);
        assert!(damage.uncertain && !damage.cut, "{damage}");
    }
}

#[test]
fn zeros_in_place_of_data_are_found_and_what_follows_is_lost() {
    let (start, end) = (scan_start(PLAIN), PLAIN.len() - 2);
    let mut file = PLAIN.to_vec();
    let from = start + (end - start) / 2;
    file[from..from + 400].fill(0);
    let (whole, part) = (decode(PLAIN), decode(&file));
    let damage = part.damage.expect("damage is seen");
    assert!(damage.uncertain && (0.3..0.7).contains(&damage.lost), "{damage}");
    // The first rows of blocks are above the damage.
    assert_eq!(whole.samples[..120 * 3 * 24], part.samples[..120 * 3 * 24]);
    assert_eq!(part.samples[120 * 3 * 109..120 * 3 * 110], [128; 360]);
}

#[test]
fn a_progressive_file_without_its_last_scans_is_coarser_and_says_so() {
    for file in [PROGRESSIVE, PROGRESSIVE_INTERVALS] {
        let whole = decode(file);
        assert_eq!(whole.damage, None);
        let mut distances = Vec::new();
        for tenths in [3, 5, 7, 9] {
            let cut = scan_start(file) + (file.len() - scan_start(file)) * tenths / 10;
            for end in [&[][..], &[0xFF, 0xD9]] {
                let part = decode(&[&file[..cut], end].concat());
                let damage = part.damage.expect("damage is seen");
                assert!(damage.lost + damage.coarse > 0.0, "{tenths} tenths: {damage}");
                let distance = |(a, b): (&u8, &u8)| u64::from(a.abs_diff(*b));
                distances.push(whole.samples.iter().zip(&part.samples).map(distance).sum::<u64>());
            }
        }
        assert!(distances.windows(3).all(|three| three[2] <= three[0]), "{distances:?}");
    }
}

#[test]
fn lost_intervals_of_a_progressive_file_are_no_silent_damage() {
    let file = PROGRESSIVE_INTERVALS;
    let whole = decode(file);
    let all: Vec<usize> = (scan_start(file)..file.len() - 2)
        .filter(|&at| file[at] == 0xFF && (0xD0..=0xD7).contains(&file[at + 1]))
        .collect();
    let mut compared = 0;
    for pair in all.windows(2).filter(|pair| !file[pair[0]..pair[1]].windows(2).any(|two| two == [0xFF, 0xDA])) {
        let part = decode(&without(file, pair[0]..pair[1]));
        let damage = part.damage.expect("damage is seen");
        assert!(damage.lost + damage.coarse > 0.0 && damage.lost < 0.3, "{damage}");
        let equal = whole.samples.iter().zip(&part.samples).filter(|(a, b)| a.abs_diff(**b) < 24).count();
        assert!(equal as f64 > 0.7 * whole.samples.len() as f64, "{equal} of {} at {}", whole.samples.len(), pair[0]);
        compared += 1;
    }
    assert!(compared > 20, "{compared} intervals");
}

#[test]
fn a_lost_byte_harms_its_interval_alone_whether_it_is_seen_or_not() {
    let (whole, markers) = (decode(INTERVALS), restarts(INTERVALS));
    let (start, end) = (scan_start(INTERVALS), INTERVALS.len() - 2);
    let mut seen = 0;
    for at in start..end {
        let interval = markers.iter().filter(|&&marker| marker + 1 < at).count();
        // A marker that is lost joins two intervals.
        let joined = markers.iter().any(|&marker| marker == at || marker + 1 == at);
        let part = decode(&without(INTERVALS, at..at + 1));
        let lost = |mcu: usize| mcu / 3 == interval || joined && mcu / 3 == interval + 1;
        assert!(agrees(&whole, &part, 16, lost), "byte {at}");
        seen += usize::from(part.damage.is_some());
    }
    // Where a block merely lacks a coefficient, nothing shows it.
    assert!(seen > (end - start) / 5, "{seen} of {}", end - start);
}

#[test]
fn stray_bytes_of_cameras_and_padding_are_no_damage() {
    let (whole, markers) = (decode(INTERVALS), restarts(INTERVALS));
    for stray in [&[0x7F][..], &[0x12; 9], &[0; 300]] {
        let mut file = INTERVALS.to_vec();
        for &marker in markers.iter().rev() {
            file.splice(marker..marker, stray.iter().copied());
        }
        let part = decode(&file);
        assert_eq!((part.damage, part.samples == whole.samples), (None, true), "{} bytes", stray.len());
    }
    let mut file = INTERVALS.to_vec();
    file.splice(markers[2]..markers[2], [0x12; 9]);
    assert!(damage(&file).lost > 0.0, "one interval alone with nine bytes is damaged");
    let webcam = fixture!("camera_webcam.jpg");
    let (sound, marker) = (decode(webcam), restarts(webcam)[2]);
    for (count, allowed) in [(9, true), (40, false)] {
        let mut file = webcam.to_vec();
        file.splice(marker..marker, std::iter::repeat_n(0x12, count));
        let part = decode(&file);
        assert_eq!(part.damage.is_none(), allowed, "{count} bytes");
        assert_eq!(part.samples == sound.samples, allowed, "{count} bytes");
    }
}

/// Where markers are behind a segment, and where behind the data of a scan; restart markers are among the latter.
fn places(file: &[u8]) -> [Vec<usize>; 2] {
    let (mut behind_segments, mut behind_data) = (Vec::new(), Vec::new());
    let mut at = 2;
    while file[at + 1] != 0xD9 {
        let marker = file[at + 1];
        let length = usize::from(u16::from_be_bytes([file[at + 2], file[at + 3]]));
        at += if (0xD0..=0xD7).contains(&marker) { 2 } else { 2 + length };
        if marker != 0xDA && !(0xD0..=0xD7).contains(&marker) {
            behind_segments.push(at);
            continue;
        }
        at += file[at..].windows(2).position(|two| two[0] == 0xFF && two[1] != 0).expect("an end marker");
        behind_data.push(at);
    }
    [behind_segments, behind_data]
}

/// Bytes that no decoder takes for a marker.
fn stray(count: usize) -> Vec<u8> {
    (0..count).map(|index| ((index * 37 + 11) % 251) as u8).collect()
}

fn with(file: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    [&file[..at], bytes, &file[at..]].concat()
}

#[test]
fn stray_bytes_between_segments_are_passed_over() {
    let separate = fixture!("camera_separate_411.jpg");
    for file in [INTERVALS, GRAY_INTERVALS, PLAIN, PROGRESSIVE, PROGRESSIVE_INTERVALS, separate] {
        let (whole, [behind_segments, _]) = (decode(file), places(file));
        assert!(whole.damage.is_none() && behind_segments.len() >= 4, "{}", behind_segments.len());
        for at in behind_segments {
            for count in [1, 2, 3, 100] {
                assert!(decode(&with(file, at, &stray(count))) == whole, "{count} bytes at {at}");
            }
        }
    }
}

#[test]
fn stray_bytes_behind_data_shift_nothing_and_many_are_damage() {
    for file in [PLAIN, fixture!("420.jpg"), PROGRESSIVE, INTERVALS, GRAY_INTERVALS, PROGRESSIVE_INTERVALS] {
        let (whole, [_, behind_data]) = (decode(file), places(file));
        for at in behind_data {
            for bytes in [stray(1), stray(2), vec![0; 3], vec![0; 100], vec![0xFF; 100]] {
                assert!(decode(&with(file, at, &bytes)) == whole, "{} bytes of {} at {at}", bytes.len(), bytes[0]);
            }
            for count in [3, 100] {
                let part = decode(&with(file, at, &stray(count)));
                assert!(part.damage.is_some(), "{count} bytes at {at}");
                if restarts(file).is_empty() {
                    assert!(part.samples == whole.samples, "{count} bytes at {at}");
                }
            }
        }
    }
}

#[test]
fn only_the_interval_before_stray_bytes_is_lost() {
    for (file, side, units) in [(INTERVALS, 16, 3), (GRAY_INTERVALS, 8, 10)] {
        let (whole, [_, behind_data]) = (decode(file), places(file));
        assert_eq!(behind_data.len(), 7);
        for (interval, at) in behind_data.into_iter().enumerate() {
            for count in [3, 100] {
                let part = decode(&with(file, at, &stray(count)));
                let lost = |mcu: usize| mcu / units == interval;
                assert!(agrees(&whole, &part, side, lost), "{count} bytes behind interval {interval}");
            }
        }
    }
}

#[test]
fn what_a_camera_leaves_behind_every_interval_is_no_damage() {
    for file in [INTERVALS, GRAY_INTERVALS] {
        let (whole, [_, places]) = (decode(file), places(file));
        let padded = |bytes: &dyn Fn(usize) -> Vec<u8>| {
            let mut file = file.to_vec();
            for (index, &at) in places.iter().enumerate().rev() {
                file = with(&file, at, &bytes(index));
            }
            decode(&file)
        };
        assert!(padded(&|_| stray(100)) == whole, "the same bytes behind all");
        assert!(padded(&|index| if index % 2 == 0 { stray(100) } else { Vec::new() }) == whole, "behind every other");
        assert!(padded(&|index| if index < 2 { stray(100) } else { Vec::new() }).damage.is_some(), "behind two alone");
        assert!(padded(&|index| stray(100 + index)).damage.is_some(), "other bytes behind each");
    }
}

#[test]
fn zeros_of_a_buffer_that_was_not_filled_are_no_end_of_a_picture() {
    for file in [PLAIN, fixture!("420.jpg"), INTERVALS, PROGRESSIVE] {
        let (start, end) = (scan_start(file), file.len() - 2);
        let whole = decode(file);
        for tenths in [3, 6, 9] {
            let cut = start + (end - start) * tenths / 10;
            for end in [&[][..], &[0xFF, 0xD9]] {
                let part = decode(&[&file[..cut], &vec![0; 100_000], end].concat());
                let damage = part.damage.unwrap_or_else(|| panic!("{tenths} tenths of the data"));
                assert!(damage.lost + damage.coarse > 0.0 || damage.uncertain, "{tenths} tenths of the data: {damage}");
            }
        }
        assert!(decode(&[&file[..end], &vec![0; 100_000], &file[end..]].concat()) == whole, "all of it is there");
    }
}

#[test]
fn a_restart_interval_that_is_not_declared_or_not_used_is_found() {
    let whole = decode(INTERVALS);
    let declared = INTERVALS.windows(2).position(|two| two == [0xFF, 0xDD]).expect("it is declared");
    let part = decode(&without(INTERVALS, declared..declared + 6));
    assert_eq!((part.damage, part.samples == whole.samples), (None, true));
    let plain = decode(PLAIN);
    let declaring = [&PLAIN[..2], &[0xFF, 0xDD, 0, 4, 0, 7], &PLAIN[2..]].concat();
    let part = decode(&declaring);
    assert_eq!((part.damage, part.samples == plain.samples), (None, true));
}

#[test]
fn tables_that_a_camera_leaves_out_are_the_standard_ones() {
    let whole = decode(PLAIN);
    let tables: Vec<usize> =
        PLAIN.windows(2).enumerate().filter(|(_, two)| *two == [0xFF, 0xC4]).map(|(at, _)| at).collect();
    assert_eq!(tables.len(), 4, "one segment for each table");
    let length = |at: usize| 2 + usize::from(u16::from_be_bytes([PLAIN[at + 2], PLAIN[at + 3]]));
    // Any of the four, and all of them.
    for missing in 0..16u32 {
        let mut file = PLAIN.to_vec();
        for (_, &at) in tables.iter().enumerate().rev().filter(|(index, _)| missing >> index & 1 == 1) {
            file.drain(at..at + length(at));
        }
        let part = decode(&file);
        assert_eq!((part.damage, part.samples == whole.samples), (None, true), "{missing:04b}");
    }
    let scan = scan_start(PLAIN);
    let mut other = PLAIN.to_vec();
    // The tables of the first component, behind the component's id.
    other[scan - 9 + 1] = 0x22;
    assert!(refused(&other).contains("Huffman table 2, which is not there"), "{}", refused(&other));
}

#[test]
fn a_file_without_tables_that_is_damaged_may_have_lost_them() {
    let tables = |file: &[u8]| file.windows(2).filter(|two| *two == [0xFF, 0xC4]).count();
    let mut bare = INTERVALS.to_vec();
    while let Some(at) = bare.windows(2).position(|two| two == [0xFF, 0xC4]) {
        let length = 2 + usize::from(u16::from_be_bytes([bare[at + 2], bare[at + 3]]));
        bare = without(&bare, at..at + length);
    }
    assert!(tables(INTERVALS) > 0 && tables(&bare) == 0);
    let markers = restarts(&bare);
    assert!(damage(&without(&bare, markers[1]..markers[2])).uncertain);
    let markers = restarts(INTERVALS);
    assert!(!damage(&without(INTERVALS, markers[1]..markers[2])).uncertain);
}

#[test]
fn the_boundary_of_a_multipart_stream_is_no_data_that_is_left_over() {
    for boundary in ["\r\n--frame\r\n", "\n--frame--", "--b\r\nContent-Type: image/jpeg\r\n\r\n"] {
        for file in [INTERVALS, PLAIN, PROGRESSIVE] {
            let without_end = &file[..file.len() - 2];
            assert_eq!(decode(&[without_end, boundary.as_bytes()].concat()), decode(file), "{boundary:?}");
        }
    }
    assert!(decode(&[&PLAIN[..PLAIN.len() - 2], b"some other text".as_slice()].concat()).damage.is_some());
}

#[test]
fn kinds_that_are_not_read_are_named() {
    let frame = PLAIN.windows(2).position(|two| two == [0xFF, 0xC0]).expect("a frame header");
    let with = |at: usize, byte: u8| {
        let mut file = PLAIN.to_vec();
        file[frame + at] = byte;
        refused(&file)
    };
    for (message, name) in [
        (with(1, 0xC3), "lossless"),
        (with(1, 0xC5), "hierarchical"),
        (with(1, 0xC9), "arithmetic coding"),
        (with(1, 0xF7), "JPEG-LS"),
        (with(4, 12), "12 bits a sample"),
        (with(9, 2), "2 components"),
    ] {
        assert!(message.contains(name) && message.contains("baseline, extended and progressive"), "{message}");
    }
    assert!(with(11, 0x51).contains("impossible sampling factor"));
    assert_eq!(decode(&[&PLAIN[..frame + 1], &[0xC1], &PLAIN[frame + 2..]].concat()).damage, None, "extended");
}

#[test]
fn a_height_behind_the_scan_counts() {
    let frame = PLAIN.windows(2).position(|two| two == [0xFF, 0xC0]).expect("a frame header");
    let mut file = PLAIN[..PLAIN.len() - 2].to_vec();
    let height = [file[frame + 5], file[frame + 6]];
    file[frame + 5..frame + 7].fill(0);
    assert_eq!(Jpeg::read(&file).expect("a header").size().1, 0);
    file.extend([&[0xFF, 0xDC, 0, 4][..], &height, &[0xFF, 0xD9]].concat());
    assert_eq!(Jpeg::read(&file).expect("a header").size(), (120, 110));
    assert_eq!(decode(&file).samples, decode(PLAIN).samples);
}

#[test]
fn a_file_far_too_short_for_its_size_is_found_by_its_header() {
    assert!(!Jpeg::read(PLAIN).expect("a header").is_too_short().expect("tables"));
    let start = scan_start(PLAIN);
    assert!(Jpeg::read(&PLAIN[..start + 20]).expect("a header").is_too_short().expect("tables"));
    for end in [2, start / 2, start - 1] {
        assert_eq!(Jpeg::read(&PLAIN[..end]).expect_err("no scan"), JpegError::Truncated);
    }
}

#[test]
fn scans_without_end_are_refused() {
    let mut file = PROGRESSIVE[..scan_start(PROGRESSIVE)].to_vec();
    let header = [0xFF, 0xDA, 0, 8, 1, 1, 0, 1, 63, 0];
    for _ in 0..200 {
        file.extend(header);
    }
    assert!(refused(&file).contains("more than 100 scans"), "{}", refused(&file));
}
