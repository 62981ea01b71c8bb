//! What `mx.quantize` of MLX 0.32.2 makes of the matrix in `weight/tests.rs`, 2 x 64 in groups
//! of 32: bits, words, scales, biases.

pub(super) type Vector = (u32, &'static [u32], [f32; 4], [f32; 4]);

#[rustfmt::skip]
pub(super) const MLX: [Vector; 6] = [
    (2, &[
        0xe379de78, 0x789e378d, 0x8de379de, 0xde789e37,
        0x378de379, 0x79de789e, 0x9e378de3, 0xe379de78,
    ], [1.0, 0.984375, 0.9921875, 0.984375], [-2.0, -1.96875, -1.984375, -1.96875]),
    (3, &[
        0xe1cfd398, 0x786af0e7, 0x398abb15, 0x0e7e1cfd,
        0xb157872f, 0xcfd398ab, 0x6af0e7e1, 0x8abb1578,
        0x7e1cfd39, 0x57872f0e, 0xd398abb1, 0xf0e7e1cf,
    ], [0.5, 0.4921875, 0.49609375, 0.4921875], [-2.0, -1.96875, -1.984375, -1.96875]),
    (4, &[
        0xc6f93d60, 0xe82c5f92, 0x1a4e81b5, 0x3d60a4d7,
        0x5f92c6f9, 0x81b5f82c, 0xa3d71a4e, 0xc6f93d60,
        0xe82c5f92, 0x1a4e71b5, 0x3d60a3d7, 0x5f92c6f9,
        0x81b5f82c, 0xa3d71a4e, 0xc6f93d60, 0xf82c5f92,
    ], [0.25, 0.24609375, 0.24804688, 0.24609375], [-2.0, -1.96875, -1.984375, -1.96875]),
    (5, &[
        0x3f2365a0, 0x757a25c3, 0x8ac9ec09, 0x4e0d51c7,
        0x365a0a1f, 0xa25c33f3, 0x9ec07757, 0xd51c78ac,
        0xa0a1f6e0, 0xcb3f3369, 0x07757a25, 0xc78ac9ec,
        0x1f6e0d51, 0xf3365a0a, 0x57a25c33, 0xac9ec077,
        0xe0d51c78, 0x69a0a1f6, 0x45cb3f33, 0xec0975fa,
    ], [0.125, 0.123046875, 0.12402344, 0.123046875], [-2.0, -1.96875, -1.984375, -1.96875]),
    (6, &[
        0xe6334680, 0xe90ac98f, 0xee11ef57, 0x797c5b53,
        0xeddd0eb4, 0x334680a0, 0xc9c57fe5, 0x11ee57c8,
        0x785b13ea, 0x9c0aa438, 0x3680a0ed, 0xc57fe533,
        0xee57c8c9, 0x5b12ea01, 0x0aa43778, 0x409ced5c,
        0x7fa53336, 0x57c8c9c5, 0x13ea11ee, 0xa438785b,
        0xa0ed9c0a, 0xe5333680, 0xd8c9c57f, 0xea11ef57,
    ], [0.060606062, 0.061523438, 0.06201172, 0.061523438], [-2.0, -1.96875, -1.984375, -1.96875]),
    (8, &[
        0x2fd06800, 0xc75fff98, 0x56f68e26, 0xed851dbe,
        0x7c14b44c, 0x0aab43e4, 0xa23adb72, 0x30d16901,
        0xc65eff97, 0x55f68d25, 0xec841cbd, 0x7b13b44b,
        0x09aa42e3, 0xa139da71, 0x2fd06800, 0xc75fff98,
        0x55f58d25, 0xec841cbd, 0x7b13b34b, 0x09aa42e3,
        0xa139da71, 0x2fd06800, 0xc75fff98, 0x56f78e26,
        0xec841cbd, 0x7b13b44b, 0x09aa42e3, 0xa139da71,
        0x2fd06800, 0xc75fff98, 0x56f78e26, 0xed851dbe,
    ], [0.015151516, 0.015144231, 0.015147901, 0.015144231], [-2.0, -1.96875, -1.984375, -1.96875]),
];
