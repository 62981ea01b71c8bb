// Sizes of a Gated DeltaNet layer: heads, their width, channels of the convolution and a token's
// numbers.

constexpr int HK = SET_HK, HV = SET_HV, D = 128;
constexpr int C = (2 * HK + HV) * D, PROJ = C + HV * D + 2 * HV;
