/* SPDX-License-Identifier: Apache-2.0 */
/* A Criterion program without any test. */
#include <criterion/criterion.h>
