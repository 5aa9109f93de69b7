#include "train_config.h"
#include <stdio.h>

int main(void)
{
    puts("train " TR_VERSION);
    return 0;
}
