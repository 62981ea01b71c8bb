// libclang's wheel carries no headers of its own and gcc's are not for clang. mlx-c's half.h needs
// no more of this header than that it exists: the type is built in.
#pragma once
