//! What MLX says of itself and of its device.

use std::ffi::CStr;

/// The device's own name, if MLX knows it.
#[must_use]
pub fn device_name() -> Option<String> {
    // SAFETY: both handles are freed below, and the name is copied before that.
    unsafe {
        let mut device = mlx_sys::mlx_device_new();
        let mut info = mlx_sys::mlx_device_info_new();
        let mut value = std::ptr::null();
        let found = mlx_sys::mlx_get_default_device(&raw mut device) == 0
            && mlx_sys::mlx_device_info_get(&raw mut info, device) == 0
            && mlx_sys::mlx_device_info_get_string(&raw mut value, info, c"device_name".as_ptr())
                == 0
            && !value.is_null();
        let name = found.then(|| CStr::from_ptr(value).to_string_lossy().into_owned());
        mlx_sys::mlx_device_info_free(info);
        mlx_sys::mlx_device_free(device);
        name
    }
}

/// MLX's version.
#[must_use]
pub fn mlx_version() -> String {
    // SAFETY: the string is copied before it is freed.
    unsafe {
        let mut text = mlx_sys::mlx_string_new();
        let found = mlx_sys::mlx_version(&raw mut text) == 0;
        let data = mlx_sys::mlx_string_data(text);
        let version =
            (found && !data.is_null()).then(|| CStr::from_ptr(data).to_string_lossy().into_owned());
        mlx_sys::mlx_string_free(text);
        version.unwrap_or_else(|| "unknown".into())
    }
}
