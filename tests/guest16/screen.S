/*
 * A floppy that draws: video modes set through the VGA BIOS, a pattern that is known pixel by pixel
 * in each, and a key between them.  Each picture is announced by a letter on the debug console
 * (port 0xe9); after the last key the machine ends through isa-debug-exit.
 *
 *     a  mode 13h, 320 x 200, 256 colours: pixel = x ^ y, with a palette of its own
 *     b  mode 12h, 640 x 480, 16 colours in planes: pixel = (x / 8 + y / 16) % 16
 *     c  VBE mode 144h, 1024 x 768, 32 bits: 0x00RRGGBB with B = x, G = y, R = x / 4 ^ y / 4
 *     d  VBE mode 105h, 1024 x 768, 256 colours: pixel = x + y, with the palette of a
 *
 * The VBE modes are drawn in the linear frame buffer, from unreal mode.
 */
        .code16
        .text
        .globl  _start
_start:
        cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        sti
        cld
        movw    $0x0203, %ax            # the three sectors behind this one
        movw    $0x7e00, %bx
        movw    $0x0002, %cx
        movb    $0, %dh
        int     $0x13
        jc      fail
        jmp     stage2
fail:
        movb    $'!', %al
        outb    %al, $0xe9
1:      hlt
        jmp     1b
        .org    510
        .word   0xaa55

stage2:
        /* a */
        movw    $0x0013, %ax
        int     $0x10
        call    set_palette
        movw    $0xa000, %ax
        movw    %ax, %es
        xorw    %di, %di
        xorw    %dx, %dx                # y
2:      xorw    %cx, %cx                # x
3:      movw    %cx, %ax
        xorw    %dx, %ax
        stosb
        incw    %cx
        cmpw    $320, %cx
        jb      3b
        incw    %dx
        cmpw    $200, %dx
        jb      2b
        movb    $'a', %al
        call    announce

        /* b */
        movw    $0x0012, %ax
        int     $0x10
        movw    $0xa000, %ax
        movw    %ax, %es
        movb    $1, %bl                 # the plane's bit
4:      movb    %bl, %ah
        movb    $2, %al                 # map mask
        movw    $0x3c4, %dx
        outw    %ax, %dx
        xorw    %di, %di
        xorw    %dx, %dx
5:      xorw    %cx, %cx                # x / 8
6:      movw    %dx, %ax
        shrw    $4, %ax
        addw    %cx, %ax
        testb   %bl, %al
        movb    $0, %al
        jz      7f
        movb    $0xff, %al
7:      stosb
        incw    %cx
        cmpw    $80, %cx
        jb      6b
        incw    %dx
        cmpw    $480, %dx
        jb      5b
        shlb    $1, %bl
        cmpb    $16, %bl
        jb      4b
        movb    $'b', %al
        call    announce

        /* c */
        movw    $0x144, %cx
        call    set_vbe
        xorl    %edx, %edx              # y
8:      movl    %ebx, %edi
        xorl    %ecx, %ecx              # x
9:      movl    %ecx, %eax
        xorl    %edx, %eax
        shrl    $2, %eax
        shll    $16, %eax
        movb    %dl, %ah
        movb    %cl, %al
        andl    $0xffffff, %eax
        movl    %eax, %fs:(%edi)
        addl    $4, %edi
        incw    %cx
        cmpw    $1024, %cx
        jb      9b
        addl    %esi, %ebx
        incw    %dx
        cmpw    $768, %dx
        jb      8b
        movb    $'c', %al
        call    announce

        /* d */
        movw    $0x105, %cx
        call    set_vbe
        call    set_palette
        xorl    %edx, %edx
10:     movl    %ebx, %edi
        xorl    %ecx, %ecx
11:     leal    (%ecx,%edx), %eax
        movb    %al, %fs:(%edi)
        incl    %edi
        incw    %cx
        cmpw    $1024, %cx
        jb      11b
        addl    %esi, %ebx
        incw    %dx
        cmpw    $768, %dx
        jb      10b
        movb    $'d', %al
        call    announce
        movb    $0x10, %al
        outb    %al, $0xf4
        jmp     fail

/* Says that a picture is ready and waits for a key. */
announce:
        outb    %al, $0xe9
        movb    $'\n', %al              # the console goes by lines
        outb    %al, $0xe9
        movb    $0, %ah
        int     $0x16
        ret

/* Entry i: red i / 4, green i % 64, blue 63 - i / 4. */
set_palette:
        movw    $0x3c8, %dx
        movb    $0, %al
        outb    %al, %dx
        incw    %dx
        xorw    %cx, %cx
12:     movb    %cl, %al
        shrb    $2, %al
        outb    %al, %dx
        movb    %cl, %al
        andb    $63, %al
        outb    %al, %dx
        movb    %cl, %al
        shrb    $2, %al
        negb    %al
        addb    $63, %al
        outb    %al, %dx
        incb    %cl
        jnz     12b
        ret

/* Sets the VBE mode in CX with its linear frame buffer; that is at FS:EBX, ESI bytes a line. */
set_vbe:
        pushw   %cx
        xorw    %ax, %ax
        movw    %ax, %es
        movw    $0x8400, %di
        movw    $0x4f01, %ax            # about the mode
        int     $0x10
        cmpw    $0x004f, %ax
        jne     fail
        popw    %bx
        orw     $0x4000, %bx            # linear
        movw    $0x4f02, %ax
        int     $0x10
        cmpw    $0x004f, %ax
        jne     fail
        movzwl  0x8400 + 0x10, %esi     # BytesPerScanLine
        movl    0x8400 + 0x28, %ebx     # PhysBasePtr
        cli
        lgdt    gdtr
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        movw    $8, %cx
        movw    %cx, %fs                # base 0, limit 4 GiB: stays behind
        andb    $0xfe, %al
        movl    %eax, %cr0
        sti
        ret

        .balign 8
gdt:    .quad   0, 0x00cf92000000ffff
gdtr:   .word   gdtr - gdt - 1
        .long   gdt
        .org    4 * 512
